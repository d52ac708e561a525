"""A server's threads are everyone's: who keeps some busy does not keep all."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from live import wait_until

THREADS = 2
SERVER = f"""
import sys
from pathlib import Path
from flask import Flask
from transport.server import serve
from transport.tls import TlsSettings
app = Flask("two threads")
app.add_url_rule("/", view_func=lambda: "here")
state, port = Path(sys.argv[1]), int(sys.argv[2])
files = TlsSettings()
serve(lambda: app, host="127.0.0.1", port=port, state=state, workers=1, threads={THREADS}, tls=None, files=files)
"""
ASKED = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), str(number)])
    try:
        wait_until(lambda: answers(number, 1.0))
        yield number
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int, seconds: float) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port), seconds)) as line:
            line.sendall(ASKED)
            found = b""
            while data := line.recv(1 << 12):
                found += data
                if found.endswith(b"here"):
                    return True
    except OSError:
        pass
    return False


@pytest.mark.parametrize("at_once", [1, 3])
def test_connections_that_never_rest_leave_threads_to_others(port: int, at_once: int) -> None:
    """Each asks as soon as it is answered, several requests at once or one, from more connections than threads."""
    done, had = threading.Event(), [0] * (2 * THREADS)

    def never_rest(place: int) -> None:
        with closing(socket.create_connection(("127.0.0.1", port), 20)) as line:
            while not done.is_set():
                line.sendall(ASKED * at_once)
                found = b""
                while found.count(b"here") < at_once:
                    data = line.recv(1 << 12)
                    assert data
                    found += data
                had[place] += 1

    busy = [threading.Thread(target=never_rest, args=(place,)) for place in range(2 * THREADS)]
    for thread in busy:
        thread.start()
    try:
        wait_until(lambda: min(had) > 5, 20)
        assert answers(port, 10.0)
    finally:
        done.set()
        for thread in busy:
            thread.join(20)
