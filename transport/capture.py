"""Records what a party receives and answers, for the demonstration and the tests of a local alliance.

What is recorded is what the party sees anyway: sealed messages, never keys. Only a manifest marked local allows it.
"""

import base64
import json
import threading
import time
from pathlib import Path

from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException

from transport.internal import CONTENT_TYPE


def capture_messages(app: Flask, file: Path) -> None:
    """Append each binary exchange of the app to a file of JSON lines: at, path, request, response, status."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()

    @app.after_request
    def record(response: Response) -> Response:
        if request.mimetype == CONTENT_TYPE:
            try:
                body = request.get_data()
            except (HTTPException, ParseException):  # a body that was cut off or is too large was refused, not received
                return response
            entry = {
                "at": time.time(),
                "path": request.path,
                "request": base64.b64encode(body).decode(),
                "response": base64.b64encode(response.get_data()).decode(),
                "status": response.status_code,
            }
            with lock, file.open("a", encoding="ascii") as out:
                out.write(json.dumps(entry) + "\n")
        return response
