"""gunicorn, started by the project's own commands with settings that keep it inside the state directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

MAX_BODY = 64 << 20
KEEP_ALIVE_SECONDS = 75


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, make_app: Callable[[], Flask], options: dict[str, Any]) -> None:
        self._make_app = make_app
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        return self._make_app()


def serve(make_app: Callable[[], Flask], *, host: str, port: int, state: Path, workers: int, threads: int) -> None:
    """Serve until SIGTERM or SIGINT. `make_app` runs in each worker, after the fork."""
    run = state / "run"
    run.mkdir(parents=True, exist_ok=True)
    _Server(
        make_app,
        {
            "bind": f"{host}:{port}",
            "workers": workers,
            "worker_class": "gthread",
            "threads": threads,
            "keepalive": KEEP_ALIVE_SECONDS,
            "timeout": 60,
            "graceful_timeout": 8,
            "worker_tmp_dir": str(run),
            "control_socket_disable": True,
            "pidfile": str(run / "pid"),
            "errorlog": "-",
            "loglevel": "warning",
            # No access log: paths and times of an insurer's checks are its own business.
            "accesslog": None,
            "proc_name": "cover-lookup",
        },
    ).run()
