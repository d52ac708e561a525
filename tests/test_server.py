"""A server's threads are everyone's: who keeps some busy does not keep all."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from certified import House, member
from live import wait_until

from transport.certificates import SERVICE
from transport.lines import HANDSHAKE_SECONDS

THREADS = 2
VIEWS = """
app.add_url_rule("/", view_func=lambda: "here")
app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
app.add_url_rule("/length", "length", view_func=lambda: str(len(request.get_data())), methods=["POST"])
app.add_url_rule("/quiet", "quiet", view_func=lambda: ("", 304))
def asked():
    body, environ = request.get_data(), request.environ
    told = [type(environ["wsgi.input"]).__name__, len(body), environ["wsgi.url_scheme"], environ["REMOTE_ADDR"]]
    response = Response(" ".join(map(str, told)))
    if "Wait" in request.headers:
        waited_for = Path(sys.argv[1]) / "closed"
        response.call_on_close(lambda: (waited_for.with_name("closing").touch(), wait_for(waited_for)))
    return response
def wait_for(file):
    while not file.exists():
        time.sleep(0.01)
app.add_url_rule("/asked", "asked", view_func=asked, methods=["POST"])
"""
SERVER = f"""
import sys, time
from pathlib import Path
from flask import Flask, Response, request
from transport.server import MAX_BODY, serve
from transport.tls import TlsSettings
app = Flask("two threads")
{VIEWS}
state, port = Path(sys.argv[1]), int(sys.argv[2])
files = TlsSettings()
serve(lambda: app, host="127.0.0.1", port=port, state=state, workers=1, threads={THREADS}, tls=None, files=files,
      messages=tuple(map(str.encode, sys.argv[3:])), rest=(b"/asked ",))
"""
ASKED = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


SECURED_SERVER = f"""
import sys, time
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from certified import tls_settings
from flask import Flask, Response, request
from protocol.encoding import decode
from protocol.manifest import Manifest, SignedManifest, Terms
from transport.certificates import Holder
from transport.server import MAX_BODY, serve
from transport.tls import Tls
state, port, go_on = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
terms = decode(Terms, decode(SignedManifest, (state / "manifest.bin").read_bytes()).terms)
files = tls_settings(state)
tls = Tls(files, Manifest.of(terms), Holder("insurer-01"))
app = Flask("two threads")
{VIEWS}
def wait():
    while not go_on.exists():
        time.sleep(0.01)
    return "late"
app.add_url_rule("/wait", view_func=wait)
serve(lambda: app, host="127.0.0.1", port=port, state=state, workers=1, threads={THREADS}, tls=tls, files=files,
      inner=tls.is_of_service, messages=(b"/length ",), rest=(b"/asked ",))
"""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with plain_server(tmp_path) as number:
        yield number


@contextmanager
def plain_server(state: Path, *messages: str) -> Iterator[int]:
    """Serve plain HTTP, with these paths of messages, and yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(state), str(number), *messages])
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


def test_connections_that_say_nothing_take_no_thread(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(10 * THREADS):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), 5)))
        assert answers(port, 4.0)  # before any of them is given up


@contextmanager
def secured_server(house: House, go_on: Path) -> Iterator[None]:
    holder = member(1)
    line = [str(house.state(holder)), str(house.ports[holder]), str(go_on), str(Path(__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", SECURED_SERVER, *line])
    try:
        wait_until(lambda: answers_securely(house, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", inner=True))
        yield
    finally:
        go_on.touch()
        process.terminate()
        process.wait(20)


def secured(house: House, *, inner: bool) -> socket.socket:
    context = house.context(SERVICE if inner else None)
    plain = socket.create_connection(("127.0.0.1", house.ports[member(1)]), 10)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def answers_securely(house: House, asked: bytes, *, inner: bool) -> bool:
    try:
        with secured(house, inner=inner) as line:
            line.sendall(asked)
            return line.recv(1 << 12).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def test_who_asks_from_outside_takes_no_thread_from_the_alliances_own_calls(tmp_path: Path) -> None:
    house, go_on = House(tmp_path), tmp_path / "go on"
    with secured_server(house, go_on), ExitStack() as stack:
        outside = [stack.enter_context(secured(house, inner=False)) for _ in range(3 * THREADS)]
        for line in outside:
            line.sendall(ASKED.replace(b"/ ", b"/wait ", 1))
        outside[-1].settimeout(0.5)
        with pytest.raises(TimeoutError):
            outside[-1].recv(1)  # all threads wait
        assert answers_securely(house, ASKED, inner=True)
        go_on.touch()
        outside[-1].settimeout(20)
        assert outside[-1].recv(1 << 12).startswith(b"HTTP/1.1 200")


CLOSING = ASKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


def test_clients_that_do_not_hang_up_hold_up_nobody(port: int) -> None:
    """Each has its whole answer, is told that the connection closes, and keeps it open."""
    with ExitStack() as stack:
        for _ in range(10 * THREADS):
            line = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), 5)))
            line.sendall(CLOSING)
        began = time.monotonic()
        assert answers(port, 10.0)
        assert time.monotonic() - began < 5  # one after the other they would take 20 seconds and more


def test_who_is_told_that_the_connection_closes_reads_the_whole_answer(port: int) -> None:
    for _ in range(20):
        with closing(socket.create_connection(("127.0.0.1", port), 5)) as line:
            line.sendall(CLOSING)
            found = b""
            while data := line.recv(1 << 12):
                found += data
            assert found.endswith(b"here")


def test_handshakes_that_stand_still_hold_up_no_other_handshake(tmp_path: Path) -> None:
    house, go_on = House(tmp_path), tmp_path / "go on"
    with secured_server(house, go_on), ExitStack() as stack:
        for _ in range(20 * THREADS):
            line = stack.enter_context(closing(socket.create_connection(("127.0.0.1", house.ports[member(1)]), 5)))
            line.sendall(b"\x16\x03\x01\x02\x00")
        began = time.monotonic()
        assert answers_securely(house, ASKED, inner=False)
        assert time.monotonic() - began < HANDSHAKE_SECONDS


def test_handshakes_that_stand_still_take_no_thread_from_requests(tmp_path: Path) -> None:
    house, go_on = House(tmp_path), tmp_path / "go on"
    with secured_server(house, go_on), secured(house, inner=False) as kept, ExitStack() as stack:
        for _ in range(5 * THREADS):
            line = stack.enter_context(closing(socket.create_connection(("127.0.0.1", house.ports[member(1)]), 5)))
            line.sendall(b"\x16\x03\x01\x02\x00")  # of a ClientHello, the first five bytes
        kept.settimeout(10)
        kept.sendall(ASKED)
        assert kept.recv(1 << 12).startswith(b"HTTP/1.1 200")
