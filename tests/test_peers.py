"""The line to peers: fan-out without threads, deadlines, connections that the peer has closed."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from transport.peers import Call, Peers, Reply, Unreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"


@contextmanager
def server(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve each connection on loopback with `handle`, in a thread; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    handle(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


def answer_all(connection: socket.socket) -> None:
    while read_request(connection):
        connection.sendall(OK)


def answer_one_and_close(connection: socket.socket) -> None:
    if read_request(connection):
        connection.sendall(OK)


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    made.close()


def to(url: str) -> Call:
    return Call(url, "/x", b"", {})


def test_calls_share_one_connection(peers: Peers) -> None:
    with server(answer_all) as url:
        replies = [peers.call(to(url), 5) for _ in range(5)]
        assert replies == [Reply(200, b"ok", "text/plain")] * 5
        peers.close()


def test_a_connection_that_the_peer_closed_is_made_anew(peers: Peers) -> None:
    with server(answer_one_and_close) as url:
        for _ in range(3):
            assert isinstance(peers.call(to(url), 5), Reply)


def test_nobody_there_is_told_at_once(peers: Peers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()
    assert peers.call(to(url), 30) == Unreachable(timed_out=False)
    assert time.monotonic() - began < 10


def test_a_silent_peer_times_out_and_the_others_answers_count(peers: Peers) -> None:
    release = threading.Event()

    def keep_silent(_: socket.socket) -> None:
        release.wait(30)

    with server(keep_silent) as silent, server(answer_all) as lively:
        results = peers.exchange([to(silent), to(lively), to(silent.replace("127.0.0.1", "localhost"))], 0.3)
        release.set()
        peers.close()
    assert results == [Unreachable(timed_out=True), Reply(200, b"ok", "text/plain"), Unreachable(timed_out=True)]


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 64, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"HTTP/9 x\r\n\r\n"]
)
def test_an_answer_that_is_no_answer_is_unreachable(peers: Peers, garbage: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        if read_request(connection):
            connection.sendall(garbage)

    with server(handle) as url:
        assert peers.call(to(url), 5) == Unreachable(timed_out=False)


def test_a_peer_that_drips_its_answer_does_not_outlast_the_deadline(peers: Peers) -> None:
    release = threading.Event()

    def drip(connection: socket.socket) -> None:
        if read_request(connection):
            for byte in OK:
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return
                if release.wait(0.1):
                    return

    with server(drip) as url:
        began = time.monotonic()
        assert peers.call(to(url), 0.5) == Unreachable(timed_out=True)
        assert time.monotonic() - began < 5  # dripped to its end it takes 7 seconds
        release.set()


def test_other_schemes_are_refused(peers: Peers) -> None:
    assert peers.call(to("file:///etc/passwd"), 1) == Unreachable(timed_out=False)
