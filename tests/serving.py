"""An application served on loopback by werkzeug, for tests that stand in a server's place."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as gunicorn's do

    def log(self, *_: object) -> None:
        """Say nothing of requests."""


@contextmanager
def serving(app: "WSGIApplication", port: int = 0) -> Iterator[int]:
    """Serve an application on loopback; yield its port."""
    http = make_server("127.0.0.1", port, app, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield http.server_port
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
