"""`alliance console`: the admins' page from an admin's own installation; see `service.admin.own_console`."""

import argparse
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from transport.settings import SettingsError

PORT, THREADS = 8470, 4

# As in cli.py, commands import what they need when they run.


def add_console_command(command: Callable[[str, object, str], argparse.ArgumentParser]) -> None:
    """Add the command."""
    sub = command("console", _console, "Serve the admins' page from this installation, to this machine alone.")
    sub.add_argument("--url", required=True, help="the lookup service's address, https://…")
    sub.add_argument("--ca", type=Path, metavar="CA_PEM", help="ca.pem of the alliance")
    sub.add_argument(
        "--pins", type=Path, required=True, metavar="FILE", help="admins.json: signatures are judged by these keys"
    )
    sub.add_argument("--port", type=int, default=PORT, help=f"port on loopback; {PORT} unless given")


def _console(args: argparse.Namespace) -> int:
    from service.admin.own_console import HOST, make_console
    from service.admin.remote import Line
    from transport.server import serve
    from transport.settings import load_pins
    from transport.tls import TlsSettings

    line = Line(args.url, args.ca)
    pins = load_pins(args.pins)
    _require_free(HOST, args.port)
    print(f"http://{HOST}:{args.port}/console (Ctrl-C ends it)", flush=True)
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


def _require_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise SettingsError(f"port {port} cannot be had ({error}); take another with --port") from None
