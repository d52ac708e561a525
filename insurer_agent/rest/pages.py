"""The interface's own description: `/openapi.json`, and a page at `/docs` on which to try it.

Both are open to all who reach the agent: they say nothing of its state. The page keeps an API key in memory alone.
"""

import json
from importlib.resources import files

from flask import Flask, Response

from insurer_agent.rest.access import table
from insurer_agent.rest.openapi import document

_TYPES = {"index.html": "text/html", "try.js": "text/javascript", "try.css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; script-src 'self'; style-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def serve(app: Flask) -> None:
    """Add the description, of the endpoints that there are by now, and the page."""
    described = json.dumps(document(table(app))) + "\n"  # in the order in which it is written
    folder = files("insurer_agent.rest") / "docs"
    content = {name: (folder / name).read_bytes() for name in _TYPES}

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(described, content_type="application/json")

    def page(name: str) -> Response:
        response = Response(content[name], content_type=f"{_TYPES[name]}; charset=utf-8")
        response.headers.update(_HEADERS)
        return response

    for name in _TYPES:
        address = "/docs" if name == "index.html" else f"/docs/{name}"
        app.add_url_rule(address, endpoint=address, view_func=page, defaults={"name": name})
