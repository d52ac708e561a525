"""The admins' page at `/console`: files that are served as they are, under a policy that lets in nothing else.

The page is open to all who reach the server and says nothing by itself: what it shows it asks for under an API key,
that is typed in and lives in the page's memory alone. It decodes what an admin is to sign, and signs, in the browser.
"""

import json
from importlib.resources import files

from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from protocol.manifest import AdminPins
from service.roles import Caller, open_to

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_INDEX, _HOME = "index.html", "home.js"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",  # a page of an older version would read an older encoding
}


def content() -> dict[str, bytes]:
    """Return the files of the page by name."""
    found = (one for one in (files("service") / "console").iterdir() if one.is_file())
    return {one.name: one.read_bytes() for one in found if _suffix(one.name) in _TYPES}


def home(pins: AdminPins) -> bytes:
    """Return the module that says that the page is of an admin's own installation, and whom that pins."""
    keys = {name: key.hex() for name, key in sorted(pins.keys.items())}
    known = {"threshold": pins.threshold, "keys": keys}
    return f"export const own = true;\nexport const pins = {json.dumps(known)};\n".encode()


def add_console(app: Flask, *, own: bytes | None = None) -> None:
    """Serve the page at `/console`; `own` takes the place of its module `home.js`, see `home`."""
    page = content()
    if own is not None:
        page[_HOME] = own

    @app.get("/console", defaults={"name": _INDEX}, endpoint="console")
    @app.get("/console/<name>", endpoint="console_file")
    @open_to(Caller.ANYONE)
    def serve(name: str) -> Response:
        if name not in page or (name == _INDEX) != (request.path == "/console"):
            raise NotFound
        response = Response(page[name], content_type=f"{_TYPES[_suffix(name)]}; charset=utf-8")
        response.headers.update(_HEADERS)
        return response


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]
