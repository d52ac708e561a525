"""The admins' page from an admin's own installation, for this machine alone.

Who signs in a page trusts who serves it. Here that is the admin's own files; the service is passed the requests under
`/v1/admin/` and nothing else, over TLS, and gives data that the page verifies. The API key comes from the browser with
each request and is not kept.
"""

import re

from flask import Flask, Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from protocol.manifest import AdminPins
from service.admin.remote import Line
from service.console_page import add_console, home
from transport import web
from transport.problems import Problem

HOST = "127.0.0.1"
MAX_BODY = 16 << 10
"""A signature is the most that the page sends."""
_PATH = re.compile(r"[0-9A-Za-z_-]{1,64}(/[0-9A-Za-z_-]{1,64}){0,3}")
_PASSED = ("Authorization", "Content-Type", "Accept")
_OK, _NOT_GOOD = 200, 300


def make_console(line: Line, port: int, pins: AdminPins) -> Flask:
    """Return the application: the page, and `/v1/admin/` passed on over the line.

    Only requests that name this machine and this port are answered (`other-host`): a page of elsewhere whose name was
    made to lead here names its own. Nor are those answered that another page makes (`other-origin`).
    """
    app = Flask("console", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    web.register(app)
    add_console(app, own=home(pins))
    own = {f"{name}:{port}" for name in (HOST, "localhost")}
    hint = f"open http://{HOST}:{port}/console"

    @app.before_request
    def refuse_others() -> None:
        if request.headers.get("Host") not in own:
            raise Problem(421, "other-host", "this page is for this machine alone", hint=hint)
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{one}" for one in own}:
            raise Problem(403, "other-origin", "another page asks for this", hint=hint)

    @app.get("/")
    def start() -> AnyResponse:
        return redirect("/console", 303)

    @app.get("/v1/admin/<path:rest>")
    @app.post("/v1/admin/<path:rest>")
    def passed_on(rest: str) -> Response:
        if not _PATH.fullmatch(rest) or request.query_string:
            raise Problem(404, "not-found", "there is no such address", hint=hint)
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        body = request.get_data() if request.method == "POST" else None
        status, data = line.exchange(request.method, f"/v1/admin/{rest}", body, headers)
        kind = "application/json" if _OK <= status < _NOT_GOOD else "application/problem+json"
        answer = Response(data, status, content_type=kind)
        answer.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
        return answer

    return app
