"""Records what a party receives and answers, for the demonstration and the tests of a local alliance.

What is recorded is what the party sees anyway: sealed messages, never keys. Only a manifest marked local allows it.
"""

import base64
import json
import threading
import time
from pathlib import Path


class Capture:
    """Appends binary exchanges to a file of JSON lines: at, path, request, response, status."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._lock = threading.Lock()

    def record(self, path: str, body: bytes, response: bytes, status: int) -> None:
        """Append one exchange."""
        entry = {
            "at": time.time(),
            "path": path,
            "request": base64.b64encode(body).decode(),
            "response": base64.b64encode(response).decode(),
            "status": status,
        }
        with self._lock, self._file.open("a", encoding="ascii") as out:
            out.write(json.dumps(entry) + "\n")
