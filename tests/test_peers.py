"""The line to peers: fan-out without threads, deadlines, connections that the peer has closed."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from certified import House

from transport.certificates import SERVICE
from transport.http_answers import MAX_ANSWER
from transport.peers import Call, LateCall, Peers, Reply, Unreachable
from transport.tls import Tls

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"


Server = Callable[[Callable[[socket.socket], None]], AbstractContextManager[str]]
"""Serves each connection with what it is given; has the URL."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("peers"))


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, house: House) -> Tls | None:
    """Have each test run over plain HTTP and over TLS, both ends with the service's certificate."""
    return house.tls(SERVICE) if request.param == "https" else None


@pytest.fixture
def server(tls: Tls | None) -> Server:
    return lambda handle: serving(handle, tls)


@contextmanager
def serving(handle: Callable[[socket.socket], None], tls: Tls | None) -> Iterator[str]:
    """Serve each connection on loopback with `handle`, in a thread; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def secured(connection: socket.socket) -> socket.socket:
            return connection if tls is None else tls.server_context().wrap_socket(connection, server_side=True)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    with secured(connection) as line:
                        handle(line)
                except ConnectionError:
                    continue  # it hung up while hands were shaken

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"
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
def peers(tls: Tls | None) -> Iterator[Peers]:
    made = Peers(tls)
    yield made
    made.close()


def to(url: str) -> Call:
    return Call(url, "/x", b"", {})


def answered(tls: Tls | None) -> Reply:
    return Reply(200, b"ok", "text/plain", sender=None if tls is None else SERVICE)


def test_calls_share_one_connection(peers: Peers, server: Server, tls: Tls | None) -> None:
    connections = []

    def handle(connection: socket.socket) -> None:
        connections.append(connection)
        answer_all(connection)

    with server(handle) as url:
        replies = [peers.call(to(url), 5) for _ in range(5)]
        assert replies == [answered(tls)] * 5
        peers.close()
    assert len(connections) == 1


def test_a_connection_that_the_peer_closed_is_made_anew(peers: Peers, server: Server) -> None:
    with server(answer_one_and_close) as url:
        for _ in range(3):
            assert isinstance(peers.call(to(url), 5), Reply)


def test_what_came_of_a_call_is_told_when_it_ends_and_another_thread_may_go_on(
    peers: Peers, server: Server, tls: Tls | None
) -> None:
    release = threading.Event()

    def held(connection: socket.socket) -> None:
        if read_request(connection):
            assert release.wait(10)
            connection.sendall(OK)

    with server(held) as slow, server(answer_all) as lively:
        replies = peers.replies([to(slow), to(lively)], 20)
        assert next(replies) == (1, answered(tls))
        release.set()
        rest: list[tuple[int, Reply | Unreachable]] = []
        thread = threading.Thread(target=lambda: rest.extend(replies))
        thread.start()
        thread.join(10)
        assert rest == [(0, answered(tls))]
        peers.close()


def test_a_late_call_is_made_when_the_one_before_it_has_left(peers: Peers, server: Server, tls: Tls | None) -> None:
    heard = threading.Event()

    def first(connection: socket.socket) -> None:
        while read_request(connection):
            heard.set()
            connection.sendall(OK)

    with server(first) as one, server(answer_all) as other:
        assert [peers.call(to(url), 5) for url in (one, other)] == [answered(tls)] * 2  # both connections stand
        heard.clear()

        def make() -> Call:
            assert heard.wait(10)
            return to(other)

        late = LateCall(other, SERVICE, MAX_ANSWER, make)
        assert peers.exchange([to(one), late], 20) == [answered(tls)] * 2
        peers.close()


def test_a_late_call_that_the_peer_hung_up_on_is_made_again(peers: Peers, server: Server) -> None:
    with server(answer_one_and_close) as url:
        made: list[Call] = []

        def make() -> Call:
            made.append(to(url))
            return made[-1]

        for _ in range(3):
            assert isinstance(peers.exchange([LateCall(url, SERVICE, MAX_ANSWER, make)], 5)[0], Reply)
        assert len(made) >= 3


def test_a_call_that_cannot_be_made_is_no_fault_of_the_peers(peers: Peers, server: Server) -> None:
    def make() -> Call:
        raise KeyError("no such slot")

    with server(answer_all) as url:
        with pytest.raises(KeyError, match="no such slot"):
            peers.exchange([LateCall(url, SERVICE, MAX_ANSWER, make)], 5)
        assert isinstance(peers.call(to(url), 5), Reply)
        peers.close()


def test_calls_under_way_when_nobody_goes_on_are_given_up(peers: Peers, server: Server, tls: Tls | None) -> None:
    hung_up = threading.Event()

    def silent(connection: socket.socket) -> None:
        if read_request(connection) and not connection.recv(1):
            hung_up.set()

    with server(silent) as slow, server(answer_all) as lively:
        replies = peers.replies([to(slow), to(lively)], 20)
        assert next(replies) == (1, answered(tls))
        replies.close()
        assert hung_up.wait(10)
        assert isinstance(peers.call(to(lively), 5), Reply)
        peers.close()


def test_nobody_there_is_told_at_once(peers: Peers, server: Server) -> None:
    with server(answer_all) as url:
        pass
    began = time.monotonic()
    assert peers.call(to(url), 30) == Unreachable(timed_out=False)
    assert time.monotonic() - began < 10


def test_a_silent_peer_times_out_and_the_others_answers_count(peers: Peers, server: Server, tls: Tls | None) -> None:
    release = threading.Event()

    def keep_silent(_: socket.socket) -> None:
        release.wait(30)

    with server(keep_silent) as silent, server(answer_all) as lively:
        results = peers.exchange([to(silent), to(lively), to(silent.replace("127.0.0.1", "localhost"))], 0.3)
        release.set()
        peers.close()
    assert results == [Unreachable(timed_out=True), answered(tls), Unreachable(timed_out=True)]


def test_a_peer_that_does_not_even_shake_hands_holds_up_no_other(house: House) -> None:
    tls = house.tls(SERVICE)
    peers = Peers(tls)
    with socket.create_server(("127.0.0.1", 0)) as mute, serving(answer_all, tls) as lively:
        nobody = f"https://127.0.0.1:{mute.getsockname()[1]}"
        results = peers.exchange([to(nobody), to(lively), to(nobody.replace("127.0.0.1", "localhost"))], 1.0)
        peers.close()
    assert results == [Unreachable(timed_out=True), answered(tls), Unreachable(timed_out=True)]


def test_what_is_larger_than_any_buffer_goes_and_comes_whole(peers: Peers, server: Server) -> None:
    size = 3 << 20

    def echo(connection: socket.socket) -> None:
        head, _, body = read_request(connection).partition(b"\r\n\r\n")
        if head:
            while len(body) < size:
                body += connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)

    data = bytes(range(256)) * (size // 256)
    with server(echo) as url:
        reply = peers.call(Call(url, "/x", data, {}), 20)
        peers.close()
    assert isinstance(reply, Reply)
    assert reply.body == data


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 64, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"HTTP/9 x\r\n\r\n"]
)
def test_an_answer_that_is_no_answer_is_unreachable(peers: Peers, server: Server, garbage: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        if read_request(connection):
            connection.sendall(garbage)

    with server(handle) as url:
        assert peers.call(to(url), 5) == Unreachable(timed_out=False)


def test_a_peer_that_drips_its_answer_does_not_outlast_the_deadline(peers: Peers, server: Server) -> None:
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


def test_a_peer_that_streams_does_not_outlast_the_deadline_and_holds_up_no_other(
    peers: Peers, server: Server, tls: Tls | None
) -> None:
    """Its bytes are there whenever they are looked for, each in a packet of its own, and never all of them."""
    ended = threading.Event()

    def stream(connection: socket.socket) -> None:
        if read_request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n")
            try:
                while not ended.is_set():
                    connection.sendall(b"x")
            except OSError:
                return

    with server(stream) as streaming, server(answer_all) as lively:
        began = time.monotonic()
        assert peers.exchange([to(streaming), to(lively)], 1.0) == [Unreachable(timed_out=True), answered(tls)]
        assert time.monotonic() - began < 3
        ended.set()


@pytest.mark.parametrize(
    "nowhere", ["file:///etc/passwd", "https://", "http://[::1", "http://x:port", "https://x:port", "ws://x"]
)
def test_what_is_no_address_of_a_peer_is_unreachable_at_once(peers: Peers, nowhere: str) -> None:
    assert peers.exchange([to(nowhere)] * 2, 30) == [Unreachable(timed_out=False)] * 2


def test_what_has_not_changed_has_no_body_and_states_no_length(peers: Peers, server: Server) -> None:
    connections = []

    def handle(connection: socket.socket) -> None:
        connections.append(connection)
        while read_request(connection):
            connection.sendall(b'HTTP/1.1 304 NOT MODIFIED\r\nETag: "x"\r\n\r\n')

    with server(handle) as url:
        replies = [peers.call(Call(url, "/x", b"", {"If-None-Match": '"x"'}, method="GET"), 5) for _ in range(3)]
        peers.close()
    assert [(reply.status, reply.body) for reply in replies if isinstance(reply, Reply)] == [(304, b"")] * 3
    assert len(connections) == 1
