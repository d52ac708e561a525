"""`alliance console`: the admins' page from an admin's own installation, on this machine alone.

Who signs in a page trusts who serves it. Here that is the admin's own files; the service is passed the requests under
`/v1/admin/` and nothing else, over TLS, and gives data that the page verifies. The API key comes from the browser with
each request and is not kept.
"""

import argparse
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from transport.settings import SettingsError

if TYPE_CHECKING:
    from flask import Flask, Response

    from protocol.manifest import AdminPins
    from service.admin.remote import Line

HOST, PORT = "127.0.0.1", 8470
MAX_BODY = 16 << 10
"""A signature is the most that the page sends."""
THREADS = 4
_PATH = re.compile(r"[0-9A-Za-z_-]{1,64}(/[0-9A-Za-z_-]{1,64}){0,3}")
_PASSED = ("Authorization", "Content-Type", "Accept")
_OK, _NOT_GOOD = 200, 300

# As in cli.py, commands import what they need when they run.


def add_console_command(command: Callable[[str, object, str], argparse.ArgumentParser]) -> None:
    """Add the command."""
    sub = command("console", _console, "Serve the admins' page from this installation, to this machine alone.")
    sub.add_argument("--url", required=True, help="the lookup service's address, https://…")
    sub.add_argument("--ca", type=Path, metavar="CA_PEM", help="ca.pem of the alliance")
    sub.add_argument("--pins", type=Path, metavar="FILE", help="admins.json: the page judges signatures by these keys")
    sub.add_argument("--port", type=int, default=PORT, help=f"on {HOST}; {PORT} unless given")


def make_console(line: "Line", port: int, pins: "AdminPins | None") -> "Flask":
    """Return the application: the page, and `/v1/admin/` passed on over the line.

    Only requests that name this machine and this port are answered (`other-host`): a page of elsewhere whose name has
    been made to lead here sends its own. Nor are those that another page makes (`other-origin`).
    """
    from flask import Flask, Response, redirect, request

    from service.console_page import add_console, home
    from transport import web
    from transport.problems import Problem

    app = Flask("console", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    web.register(app)
    add_console(app, own=home(pins))
    own = {f"{name}:{port}" for name in (HOST, "localhost")}

    @app.before_request
    def refuse_others() -> None:
        hint = f"open http://{HOST}:{port}/console"
        if request.headers.get("Host") not in own:
            raise Problem(421, "other-host", "this page is for this machine alone", hint=hint)
        origin = request.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in own:
            raise Problem(403, "other-origin", "another page asks for this", hint=hint)

    @app.get("/")
    def start() -> Response:
        answer = redirect("/console", 303)
        assert isinstance(answer, Response)
        return answer

    @app.get("/v1/admin/<path:rest>")
    @app.post("/v1/admin/<path:rest>")
    def passed_on(rest: str) -> Response:
        if not _PATH.fullmatch(rest) or request.query_string:
            raise Problem(404, "not-found", "there is no such address", hint=f"open http://{HOST}:{port}/console")
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        body = request.get_data() if request.method == "POST" else None
        status, data = line.exchange(request.method, f"/v1/admin/{rest}", body, headers)
        kind = "application/json" if _OK <= status < _NOT_GOOD else "application/problem+json"
        answer = Response(data, status, content_type=kind)
        answer.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
        return answer

    return app


def _console(args: argparse.Namespace) -> int:
    from service.admin.remote import Line
    from transport.server import serve
    from transport.settings import load_pins
    from transport.tls import TlsSettings

    line = Line(args.url, args.ca)
    pins = None if args.pins is None else load_pins(args.pins)
    _require_free(args.port)
    where = f"http://{HOST}:{args.port}/console"
    print(f"{where} (Ctrl-C ends it)", flush=True)
    if pins is None:
        print("without --pins the admins' keys are as the service tells them", flush=True)
    with tempfile.TemporaryDirectory(prefix="alliance-console-") as state:
        serve(
            lambda: make_console(line, args.port, pins),
            host=HOST,
            port=args.port,
            state=Path(state),
            workers=1,
            threads=THREADS,
            tls=None,
            files=TlsSettings(),
        )
    return 0


def _require_free(port: int) -> None:
    try:
        with socket.create_server((HOST, port)):
            pass
    except (OSError, OverflowError) as error:
        raise SettingsError(f"port {port} cannot be had ({error}); take another, --port N") from None
