"""Requests of the alliance's own parties, which are read beside gunicorn's parser: what is taken, and what is not."""

import contextlib
import gc
import re
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from certified import House, member
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from live import wait_until
from strategies import deterministic
from test_server import plain_server, secured, secured_server

from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.voprf import DleqProof
from transport import server, web
from transport.http_answers import HttpAnswer, request_bytes
from transport.internal import CONTENT_TYPE
from transport.message_face import Answer, Asked, MessageFace, answer_of, read_message
from transport.peer_requests import (
    MAX_HEAD,
    BadRequestError,
    Environ,
    PeerRequest,
    TooLongError,
    answer_request,
    read_request,
)
from transport.problems import Problem

MOST = 1 << 16
HEAD = b"POST /a HTTP/1.1\r\nHost: here\r\n"


def taken(data: bytes, cuts: Sequence[int] = (), most: int = MOST) -> PeerRequest:
    request, at = PeerRequest(most), 0
    for end in [*sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]:
        if end > at:
            request.take(data[at:end])
        at = end
    return request


@deterministic(150)
@given(
    path=st.from_regex(r"/[a-z0-9/._-]{0,40}(\?[a-z=&]{0,20})?", fullmatch=True),
    headers=st.dictionaries(
        st.from_regex(r"X-[A-Za-z0-9-]{1,20}", fullmatch=True),
        st.from_regex(r"[!-~]([ -~]{0,40}[!-~])?", fullmatch=True),
        max_size=5,
    ),
    body=st.binary(max_size=4000),
    cuts=st.lists(st.integers(0, 5000), max_size=6),
)
def test_what_peers_write_is_read_however_it_is_cut(
    path: str, headers: dict[str, str], body: bytes, cuts: list[int]
) -> None:
    request = taken(request_bytes("POST", "here", path, headers, body), cuts)
    assert (request.whole, request.stays) == (True, True)
    environ = request.environ()
    assert environ["REQUEST_METHOD"] == "POST"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == tuple(path.partition("?")[::2])
    assert environ["CONTENT_LENGTH"] == str(len(body))
    assert environ["wsgi.input"].read() == body
    lowered = {name.lower(): value for name, value in headers.items()}
    assert {"HTTP_" + name.upper().replace("-", "_") for name in headers} <= environ.keys()
    if len(lowered) == len(headers):
        assert all(environ["HTTP_" + name.upper().replace("-", "_")] == value for name, value in headers.items())


@given(before=st.text(" \t", max_size=3), after=st.text(" \t", max_size=3))
def test_white_space_around_a_header_is_not_of_it(before: str, after: str) -> None:
    request = taken(HEAD + f"X-One:{before}a b{after}\r\nContent-Length: 0\r\n\r\n".encode())
    assert request.header("x-one") == request.environ()["HTTP_X_ONE"] == "a b"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Host: there\r\nContent-Length: 0\r\n\r\n",
        HEAD + 100 * b"X: y\r\n" + b"Content-Length: 0\r\n\r\n",
        HEAD + b"X: " + 4000 * b"y" + b"\r\nContent-Length: 0\r\n\r\n",
        HEAD + 5 * (b"X: " + 3500 * b"y" + b"\r\n") + b"Content-Length: 0\r\n\r\n",
        HEAD.replace(b"/a", b"/" + 4000 * b"a") + b"Content-Length: 0\r\n\r\n",
        b"\x16\x03\x01\x00\xa5",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /a HTTP/1.0\r\nHost: here\r\nContent-Length: 0\r\n\r\n",
        b"POST /a HTTP/1.1\nHost: here\nContent-Length: 0\n\n",
        b"POST http://elsewhere/a HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n",
        b"CONNECT here:443 HTTP/1.1\r\nHost: here\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: +3\r\n\r\nabc",
        HEAD + b"Content-Length: 0x3\r\n\r\nabc",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
        HEAD + b"Content-Length : 3\r\n\r\nabc",
        HEAD + b"Content_Length: 3\r\n\r\nabc",
        HEAD + b"Lookup_Time: 3\r\n\r\n",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
        HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        HEAD + b"Content-Length: 0\r\n\r\nGET /b HTTP/1.1\r\nHost: here\r\n\r\n",
        HEAD + b"Content-Length: 3\r\n\r\nabcd",
        HEAD + b" folded: 1\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"X: " + MAX_HEAD * b"x",
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        taken(data)
    with pytest.raises(BadRequestError):
        taken(data, range(0, len(data), 7))


@deterministic(300)
@given(
    data=st.binary(max_size=300)
    | st.builds(
        lambda at, by: HEAD[:at] + by + HEAD[at:] + b"Content-Length: 1\r\n\r\na", st.integers(0, 31), st.binary()
    )
)
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    try:
        request = taken(data)
        if request.whole:
            assert request.environ()["PATH_INFO"].startswith("/")
    except BadRequestError:
        pass


def test_a_body_that_is_too_long_is_not_read() -> None:
    here, there = socket.socketpair()
    with closing(here), closing(there):
        there.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (MOST + 1))
        with pytest.raises(TooLongError):
            read_request(here, MOST, here.recv(1 << 12))
    assert (
        taken(HEAD + b"Content-Length: %d\r\n\r\n" % MOST + MOST * b"x").environ()["wsgi.input"].read() == MOST * b"x"
    )


def test_a_line_that_breaks_off_is_no_request() -> None:
    for data in (HEAD, HEAD + b"Content-Length: 3\r\n\r\nab"):
        here, there = socket.socketpair()
        with closing(here):
            there.sendall(data)
            there.close()
            with pytest.raises(BadRequestError):
                read_request(here, MOST, here.recv(20))


@pytest.mark.parametrize(
    "data", [HEAD + b"Content-Length: 3\r\n\r\nabc", HEAD + b"Expect: x\r\n\r\n", HEAD + MAX_HEAD * b"x"]
)
def test_nothing_of_a_request_waits_for_the_collector(data: bytes) -> None:
    """The collector comes seldom in a server, and a body may have megabytes."""
    gc.collect()
    gc.disable()
    try:
        request = PeerRequest(MOST)
        with contextlib.suppress(BadRequestError):
            request.take(data)
        seen = weakref.ref(request)
        del request
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified", "503 Service Unavailable"])
def test_answers_are_what_peers_read(status: str, method: str, stays: bool) -> None:  # noqa: FBT001  a parameter of pytest's
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a", b"b"])

        def close(self) -> None:
            closed.append(True)

    def application(environ: Environ, start_response: Callable[..., object]) -> Body:
        assert environ["REQUEST_METHOD"] == method
        start_response(status, [("Content-Type", "text/plain"), ("ETag", '"x"')])
        return Body()

    data, close = answer_request(application, {"REQUEST_METHOD": method}, stays=stays, more=[("X-More", "1")])
    assert closed == []
    close()
    assert closed == [True]
    assert b"\r\nX-More: 1\r\n" in data
    assert (b"\r\nConnection: close\r\n" in data) is not stays
    assert (b"\r\nContent-Length: 2\r\n" in data) is not status.startswith("304")
    if method == "GET" and not status.startswith("304"):
        answer = HttpAnswer()
        answer.take(memoryview(data))
        assert (answer.status, answer.body, answer.whole) == (int(status[:3]), b"ab", True)
    else:
        assert data.endswith(b"\r\n\r\n")


# --- at a server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("house")
    built = House(root)
    with secured_server(built, root / "go on"):
        yield built


@pytest.fixture(scope="module")
def plain_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with plain_server(tmp_path_factory.mktemp("plain"), "/length ") as port:
        yield port


Connect = Callable[[], socket.socket]


@pytest.fixture(params=["TLS", "plain HTTP"])
def peer(request: pytest.FixtureRequest) -> Connect:
    """Connect as a party of the alliance."""
    if request.param == "TLS":
        house = request.getfixturevalue("house")
        return lambda: secured(house, inner=True)
    port = request.getfixturevalue("plain_port")
    return lambda: socket.create_connection(("127.0.0.1", port), 10)


@pytest.fixture
def outsider(house: House) -> Connect:
    return lambda: secured(house, inner=False)


def heard(line: socket.socket) -> bytes:
    """Return what comes until the server hangs up."""
    line.settimeout(20)
    found = b""
    while data := line.recv(1 << 16):
        found += data
    return found


def exchange(line: socket.socket, data: bytes) -> HttpAnswer:
    line.settimeout(20)
    line.sendall(data)
    answer = HttpAnswer()
    while not answer.whole:
        got = line.recv(1 << 16)
        assert got
        answer.take(memoryview(got))
    return answer


@pytest.mark.parametrize("who", ["peer", "outsider"])
def test_one_line_has_many_requests_of_all_lengths(request: pytest.FixtureRequest, who: str, peer: Connect) -> None:
    with (peer if who == "peer" else request.getfixturevalue(who))() as line:
        for length in (0, 1, 16_383, 16_384, 16_385, 200_000, 5):
            answer = exchange(line, request_bytes("POST", "here", "/length", {}, length * b"x"))
            assert (answer.status, answer.body, answer.stays) == (200, str(length).encode(), True)
        assert exchange(line, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").body == b"here"
        assert exchange(line, b"GET /quiet HTTP/1.1\r\nHost: here\r\n\r\n").status == 304
        assert exchange(line, b"GET /nowhere HTTP/1.1\r\nHost: here\r\n\r\n").status == 404


def test_what_is_no_request_is_answered_so_and_ends_the_line(house: House) -> None:
    length = HEAD.replace(b"/a", b"/length")
    for data in (length + b"Expect: x\r\n\r\n", length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"):
        with secured(house, inner=True) as line:
            line.sendall(data)
            assert heard(line).startswith(b"HTTP/1.1 400 ")


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(house: House) -> None:
    with secured(house, inner=True) as line:
        line.sendall(b"POST /length HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % (server.MAX_BODY + 1))
        found = heard(line)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in found


def test_two_requests_at_once_are_one_too_many(house: House) -> None:
    with secured(house, inner=True) as line:
        line.sendall(2 * b"POST /length HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n")
        assert heard(line).startswith(b"HTTP/1.1 400 ")


def test_over_plain_http_anyone_may_ask_as_of_any_server(plain_port: int) -> None:
    """What is not one whole message with its length is read and answered as anywhere."""
    length = HEAD.replace(b"/a", b"/length")
    chunked = length + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    two = length + b"Content-Length: 4\r\n\r\nabcd" + length + b"Content-Length: 5\r\n\r\nabcde"
    too_long = length + b"Content-Length: %d\r\n\r\nx" % (server.MAX_BODY + 1)
    garbled = length + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"
    for data, found in ((chunked, [b"3"]), (two, [b"4", b"5"]), (chunked + two + chunked, [b"3", b"4", b"5", b"3"])):
        with socket.create_connection(("127.0.0.1", plain_port), 10) as line:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            assert [answer.rpartition(b"\r\n")[2] for answer in heard(line).split(b"HTTP/1.1 200 OK")[1:]] == found
    for data, status in ((too_long, b"413"), (garbled, b"400")):
        with socket.create_connection(("127.0.0.1", plain_port), 10) as line:
            line.sendall(data)
            assert heard(line).startswith(b"HTTP/1.1 " + status)


# --- requests of anyone that are asked often


ASKED = b"POST /asked HTTP/1.1\r\nHost: here\r\n"


def anyones(request: pytest.FixtureRequest, who: str) -> Connect:
    """Connect as a party of the alliance, as anyone by TLS, or as anyone by plain HTTP."""
    if who == "plain":
        port = request.getfixturevalue("plain_port")
        return lambda: socket.create_connection(("127.0.0.1", port), 10)
    house = request.getfixturevalue("house")
    return lambda: secured(house, inner=who == "party")


by_anyone = pytest.mark.parametrize("who", ["party", "anyone", "plain"])


@by_anyone
def test_what_anyone_asks_often_is_heard_without_gunicorns_parser(request: pytest.FixtureRequest, who: str) -> None:
    scheme = b"http" if who == "plain" else b"https"
    with anyones(request, who)() as line:
        for length in (0, 5, server.MAX_REST):
            answer = exchange(line, request_bytes("POST", "here", "/asked", {}, length * b"x"))
            assert answer.body == b"BytesIO %d %s 127.0.0.1" % (length, scheme)
            assert (answer.status, answer.stays) == (200, True)
            assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 60
        assert exchange(line, request_bytes("POST", "here", "/length", {}, b"abc")).body == b"3"
        line.sendall(ASKED + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        assert heard(line).endswith(b"BytesIO 0 %s 127.0.0.1" % scheme)


@by_anyone
@pytest.mark.parametrize(
    ("data", "lengths"),
    [
        (ASKED + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", [3]),
        (ASKED + b"Content-Length: 65537\r\n\r\n" + 65537 * b"x", [65537]),
        (2 * (ASKED + b"Content-Length: 2\r\n\r\nab"), [2, 2]),
        (
            ASKED + b"Content-Length: 2\r\n\r\nab" + HEAD.replace(b"/a", b"/asked") + b"Content-Length: 0\r\n\r\n",
            [2, 0],
        ),
        (ASKED.replace(b"1.1", b"1.0") + b"Content-Length: 1\r\n\r\na", [1]),
        (ASKED.replace(b"/asked", b"/asked?x") + b"Content-Length: 1\r\n\r\na", [1]),
    ],
)
def test_what_is_not_one_small_request_with_its_length_is_gunicorns_and_nothing_of_it_is_lost(
    request: pytest.FixtureRequest, who: str, data: bytes, lengths: list[int]
) -> None:
    with anyones(request, who)() as line:
        line.sendall(data)
        line.settimeout(20)
        found = b""
        while found.count(b"127.0.0.1") < len(lengths):
            got = line.recv(1 << 16)
            assert got
            found += got
    assert re.findall(rb"(\w+) (\d+) https? 127", found) == [(b"Body", b"%d" % length) for length in lengths]


@by_anyone
@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"Host: there\r\nContent-Length: 0\r\n\r\n",
        100 * b"X: y\r\n" + b"Content-Length: 0\r\n\r\n",
        b"X: " + 8192 * b"y" + b"\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_as_gunicorn_does(request: pytest.FixtureRequest, who: str, rest: bytes) -> None:
    with anyones(request, who)() as line:
        line.sendall(ASKED + rest)
        assert heard(line).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


@pytest.mark.parametrize("who", ["anyone", "plain"])
def test_what_is_to_be_done_after_an_answer_is_done_when_it_has_been_sent(tmp_path: Path, who: str) -> None:
    with ExitStack() as held:
        if who == "plain":
            state = tmp_path
            port = held.enter_context(plain_server(state))
            line = held.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        else:
            built = House(tmp_path)
            held.enter_context(secured_server(built, tmp_path / "go on"))
            state, line = built.state(member(1)), held.enter_context(secured(built, inner=False))
        assert exchange(line, ASKED + b"Wait: 1\r\nContent-Length: 2\r\n\r\nab").body.startswith(b"BytesIO 2 ")
        wait_until((state / "closing").exists)
        (state / "closed").touch()
        assert exchange(line, ASKED + b"Content-Length: 1\r\n\r\na").body.startswith(b"BytesIO 1 ")


def test_a_request_that_comes_byte_by_byte_ends_in_time(peer: Connect) -> None:
    began = time.monotonic()
    with peer() as line:
        line.settimeout(0.2)
        line.sendall(HEAD.replace(b"/a", b"/length") + b"Content-Length: 1000\r\n\r\n")
        while time.monotonic() - began < 3 * server.HEARING_SECONDS:
            try:
                line.sendall(b"x")
                if not line.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.monotonic() - began < 2 * server.HEARING_SECONDS
    with peer() as line:
        assert exchange(line, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").body == b"here"


# --- messages, with and without an environment ----------------------------------------------------------------------


def face_of(most: int) -> tuple[Flask, MessageFace]:
    app = Flask("messages")
    app.config["MAX_CONTENT_LENGTH"] = most
    web.register(app)
    face = MessageFace(app, None)

    def raising(error: Exception) -> Callable[[Asked], Answer]:
        def handle(_request: Asked) -> Answer:
            raise error

        return handle

    def told(request: Asked) -> Answer:
        seen = (
            f"{request.path} {request.header('Lookup-Time')} {request.is_message} {request.environ['gunicorn.socket']}"
        )
        return seen.encode() + request.body, [("Lookup-Signature", "ab")]

    face.add("/a", told)
    face.add("/message", lambda request: answer_of(read_message(request, DleqProof)))
    for number, error in enumerate(
        [Problem(429, "busy", "x", retry_after=3), ProtocolError("stale", "y"), KeyError("z")]
    ):
        face.add(f"/{number}", raising(error))
    return app, face


@deterministic(150)
@given(
    path=st.sampled_from(["/a", "/a?x=y", "/%61", "/0", "/1", "/2", "/message", "/b", "/a/", "/"]),
    method=st.sampled_from(["POST", "GET", "HEAD", "PUT"]),
    headers=st.dictionaries(
        st.sampled_from(["Content-Type", "Lookup-Time", "lookup-signature"]),
        st.sampled_from([CONTENT_TYPE, f"{CONTENT_TYPE}; a=b", "text/plain", "12", CONTENT_TYPE.upper()]),
    ),
    body=st.binary(max_size=40)
    | st.binary(min_size=81, max_size=90)
    | st.just(encode(DleqProof(challenge=bytes(32), response=bytes(32)))),
    stays=st.booleans(),
)
def test_a_message_is_answered_alike_with_and_without_an_environment(
    path: str,
    method: str,
    headers: dict[str, str],
    body: bytes,
    stays: bool,  # noqa: FBT001  as above
) -> None:
    app, face = face_of(80)
    request = taken(request_bytes(method, "here", path, headers, body))
    by_environ, _ = answer_request(
        app, request.environ() | {"gunicorn.socket": "line", "wsgi.url_scheme": "https"}, stays=stays
    )
    direct = face.answer_peer(request, "line", stays=stays)
    assert (direct is not None) is (method == "POST" and face.serves(request.path))
    if direct is not None:
        assert direct == by_environ
