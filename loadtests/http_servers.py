"""What an HTTP server itself takes of a message: gunicorn as this project runs it, and others that are installed.

    .venv/bin/python loadtests/http_servers.py [--requests 2000] [--rounds 5]

Each serves one WSGI application that takes a kilobyte and answers three, in one process, and is asked by one client on
a kept connection, in blocks that alternate. Compared are the medians and the processor time of the server's processes,
each against gunicorn's own worker of threads, in the same run. gevent, granian and bjoern are asked where they are
installed; the project needs none of them. Then one request is taken and answered in one thread by gunicorn's parser and
environment, as anyone's is, and as a peer's is that has shown a certificate of the alliance. Prints tables.
"""

import argparse
import contextlib
import importlib.util
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.config import Config
from gunicorn.http import get_parser, wsgi
from processes import process_clock, tree

from transport.peer_requests import answer_request, read_request
from transport.server import MAX_BODY, serve
from transport.tls import TlsSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ASKED, ANSWERED = 1 << 10, 3 << 10
THREADS = 16
START_SECONDS = 30.0
GUNICORN = [sys.executable, "-m", "gunicorn", "--log-level", "error", "--keep-alive", "75", "--bind"]


def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """Take a message and answer one."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(ANSWERED))])
    return [bytes(ANSWERED)]


def serve_ours(port: int, state: Path) -> None:
    """Serve the application as agents and the service are served, by plain HTTP."""

    def make_app() -> Flask:
        app = Flask("servers")
        app.wsgi_app = application  # type: ignore[assignment, method-assign]  # past Flask, as messages go
        return app

    serve(make_app, host="127.0.0.1", port=port, state=state, workers=1, threads=THREADS, tls=None, files=TlsSettings())


def _commands(state: Path) -> dict[str, list[str]]:
    """Return how each is started, but for the port, which comes last or in the place of `{port}`."""
    here = Path(__file__)
    threads = [*GUNICORN, "127.0.0.1:{port}", "--worker-class", "gthread", "--threads", str(THREADS)]
    found = {
        "gunicorn, worker of threads": [*threads, "http_servers:application"],
        "gunicorn, this project's worker": [sys.executable, str(here), "--serve", "{port}", "--state", str(state)],
    }
    if importlib.util.find_spec("gevent"):
        line = [*GUNICORN, "127.0.0.1:{port}", "--worker-class", "gevent", "http_servers:application"]
        found["gunicorn, gevent"] = line
    if importlib.util.find_spec("granian"):
        line = [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}"]
        found["granian (Rust)"] = [*line, "--no-ws", "--log-level", "error", "http_servers:application"]
    if importlib.util.find_spec("bjoern"):
        code = "import bjoern, http_servers; bjoern.run(http_servers.application, '127.0.0.1', {port})"
        found["bjoern (C)"] = [sys.executable, "-c", code]
    return found


def parsers(requests: int, rounds: int) -> dict[str, float]:
    """Return the microseconds that each of both ways takes for a request, sockets included: medians of blocks."""
    config, data = Config(), _request(80)
    here, there = socket.socketpair()
    parser = get_parser(config, there, ("127.0.0.1", 1))

    def anyone() -> None:
        response, environ = wsgi.create(next(parser), there, ("127.0.0.1", 1), ("127.0.0.1", 2), config)
        for piece in application(environ, response.start_response):
            response.write(piece)
        response.close()

    def peer() -> None:
        request = read_request(there, MAX_BODY, there.recv(1 << 14))
        answer, close = answer_request(application, request.environ(), stays=True)
        there.sendall(answer)
        close()

    took: dict[str, list[float]] = {"anyone's, by gunicorn": [], "a peer's, by llhttp": []}
    with here, there:
        for _ in range(rounds):
            for name, way in zip(took, (anyone, peer), strict=True):
                began = time.perf_counter()
                for _ in range(requests):
                    here.sendall(data)
                    way()
                    _answer(here)
                took[name].append(1e6 * (time.perf_counter() - began) / requests)
    return {name: statistics.median(times) for name, times in took.items()}


@dataclass
class Server:
    """A server at work, with what its blocks gave: medians in microseconds, processor time a request in the same."""

    port: int
    pid: int
    medians: list[float] = field(default_factory=list)
    core: list[float] = field(default_factory=list)

    def block(self, requests: int) -> None:
        """Ask so often, one after the other."""
        data, took, pids = _request(self.port), [], tree(self.pid)
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _exchange(line, data)
            before = sum(map(process_clock, pids))
            for _ in range(requests):
                began = time.perf_counter()
                _exchange(line, data)
                took.append(time.perf_counter() - began)
            self.core.append(1e6 * (sum(map(process_clock, pids)) - before) / requests)
        self.medians.append(1e6 * statistics.median(took))


def _request(port: int) -> bytes:
    head = f"POST /message HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {ASKED}\r\n\r\n".encode() + bytes(ASKED)


def _exchange(line: socket.socket, data: bytes) -> None:
    line.sendall(data)
    _answer(line)


def _answer(line: socket.socket) -> None:
    got, whole = b"", 0
    while not whole or len(got) < whole:
        piece = line.recv(1 << 16)
        if not piece:
            raise ConnectionError("the answer breaks off")
        got += piece
        if not whole and b"\r\n\r\n" in got:
            whole = got.index(b"\r\n\r\n") + 4 + ANSWERED
    if not got.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError("the answer is none")


@contextlib.contextmanager
def _running(line: list[str]) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    command = [part.replace("{port}", str(port)) for part in line]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})
    try:
        server, until = Server(port, process.pid), time.monotonic() + START_SECONDS
        while True:
            try:
                server.block(50)
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(0.1)
        server.medians.clear()
        server.core.clear()
        yield server
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def compare(requests: int, rounds: int) -> dict[str, Any]:
    """Return by server the medians of its blocks: microseconds from request to answer, and of its processor."""
    with tempfile.TemporaryDirectory() as state, contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(_running(line)) for name, line in _commands(Path(state)).items()}
        for number in range(rounds):
            for server in servers.values():
                server.block(requests)
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
        return {
            name: {"p50_us": statistics.median(one.medians), "core_us": statistics.median(one.core)}
            for name, one in servers.items()
        }


def main() -> int:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve_ours(args.serve, args.state)
        return 0
    found = compare(args.requests, args.rounds)
    first = next(iter(found.values()))
    sys.stdout.write("| server | p50 | its processor | against the first |\n|---|--:|--:|--:|\n")
    for name, one in found.items():
        ratio = f"{one['p50_us'] / first['p50_us']:.2f} and {one['core_us'] / first['core_us']:.2f}"
        sys.stdout.write(f"| {name} | {one['p50_us']:.0f} us | {one['core_us']:.0f} us | {ratio} |\n")
    sys.stdout.write("\n| one request in one thread | |\n|---|--:|\n")
    for way, took in parsers(args.requests, args.rounds).items():
        sys.stdout.write(f"| {way} | {took:.0f} us |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
