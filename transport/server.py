"""gunicorn, started by the project's own commands with settings that keep it inside the state directory."""

import ctypes
import errno
import gc
import logging
import resource
import select
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.util import close_graceful, http_date
from gunicorn.workers.gthread import TConn, ThreadWorker

from protocol import garbling
from protocol.half_gates_arrays import Arrays
from transport.lines import HANDSHAKE_SECONDS, ServerSocket, ServerTlsSocket
from transport.message_face import MessageFace
from transport.peer_requests import (
    BAD_REQUEST,
    TOO_LONG,
    BadRequestError,
    Heard,
    PeerRequest,
    TooLongError,
    answer_request,
    read_request,
)
from transport.tls import Tls, TlsSettings

log = logging.getLogger(__name__)

MAX_BODY = 8 << 20
MAX_REST = 64 << 10
"""Bytes that the body of a `rest` request may have to be read here."""
KEEP_ALIVE_SECONDS = 75
ALIVE_SECONDS = 1.0
LINGER_MILLISECONDS, LINGER_SECONDS = 25, 0.5
"""How long a thread waits for a connection's next request, and stays with it, however soon its requests come."""
PEER_LINGERS, PEER_LINGER_SECONDS = 10, 5.0
"""How often it waits so for a peer of the alliance, unless others wait, and how long it stays: a peer has few
connections, on which requests come for as long as it has any."""
REST_SECONDS = 1.0
HEARING_SECONDS = 10.0
"""How long a request of a peer may take to come, from its first bytes on."""
FIRST_BYTES_SECONDS = 6.0
"""How long a connection may say nothing at all; less than a worker has to end in."""
MAX_CONNECTIONS = 4096
_SPARE_FILES = 200
"""Of those that a process may have open: files, and connections to peers and databases."""
_FEW = 16
Whose = Callable[[bytes], bool]
"""Tells by a client's certificate (DER, its chain verified) whether it is a certain party's."""
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""


def _die_with_parent(_server: object, _worker: object) -> None:
    """Have the kernel end this worker should gunicorn's master be killed: an orphan would keep the port."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep_little_memory() -> None:
    """Have glibc give back what is freed: else each thread keeps an arena of its own, as large as it ever was."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and keeps little by itself
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 2)
            mallopt(_M_MMAP_THRESHOLD, 256 << 10)
            mallopt(_M_TRIM_THRESHOLD, 1 << 20)


def _files_for_connections() -> int:
    """Return how many connections a worker takes at once: others wait in the kernel, where they cost no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else soft
    return max(_SPARE_FILES, min(MAX_CONNECTIONS, allowed - _SPARE_FILES))


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's worker of threads, that switches less between them.

    It tells its master that it is alive once a second and not at every event: each time is a write to the file system.
    A connection's first bytes are waited for by no thread, its handshake is made by a few threads that do nothing else,
    and requests on `inner` connections have threads of their own: they are what other parties wait for, however many
    ask here from outside. And a thread that has answered waits a moment for the next request on the same connection,
    where others are idle: peers in a row of checks send it soon, and it need not go by the thread that waits for all
    connections.
    """

    inner: Whose | None = None
    peer: Whose | None = None
    is_plain = False
    """Whether nobody shows a certificate, so that whoever sends what begins like a message is heard as a peer."""
    messages: tuple[bytes, ...] = ()
    rest: tuple[bytes, ...] = ()
    scheme = "https"
    pending_conns: deque[TConn]
    _tell_at = 0.0
    _look_at = 0.0

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        # Half of each pool's threads never wait so.
        self._lingering = BoundedSemaphore(max(1, self.cfg.threads // 2))
        self._inner_lingering = BoundedSemaphore(max(1, self.cfg.threads // 4))
        self._parting = BoundedSemaphore(max(1, self.cfg.threads // 2))

    def init_process(self) -> None:
        """Start the pools beside gunicorn's own; their threads begin when there is work."""
        self._arrivals = ThreadPoolExecutor(max(2, self.cfg.threads // 4), "arrivals")
        self._inner = ThreadPoolExecutor(max(2, self.cfg.threads // 2), "inner")
        super().init_process()

    def run(self) -> None:
        """Serve; at the end nobody waits for threads that are still at work, as with gunicorn's own."""
        try:
            super().run()
        finally:
            for pool in (self._arrivals, self._inner):
                pool.shutdown(wait=False)

    def enqueue_req(self, conn: TConn) -> None:
        """Have a connection's next step taken: its first bytes awaited, hands shaken, or a request answered."""
        if self.is_plain and not isinstance(conn.sock, ServerSocket):
            conn.sock = ServerSocket.of(conn.sock)
        if not conn.initialized and not conn.data_ready:
            conn.sock.setblocking(False)  # noqa: FBT003  the name of the method says it
            conn.timeout = time.monotonic() + FIRST_BYTES_SECONDS
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
            return
        if self.cfg.is_ssl and not getattr(conn, "has_shaken_hands", False):
            step = self._arrivals.submit(self._shake_hands, conn)
            step.add_done_callback(lambda done: self.method_queue.defer(self._after_handshake, conn, done))
            return
        is_inner = self._is_inner(conn)
        conn.lingering = self._inner_lingering if is_inner else self._lingering
        answered = (self._inner if is_inner else self.tpool).submit(self.handle, conn)
        answered.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    @staticmethod
    def _shake_hands(conn: TConn) -> bool:
        """Go on with a handshake, and wait for nothing; return whether it is done."""
        if not conn.initialized:
            conn.timeout = time.monotonic() + HANDSHAKE_SECONDS
            conn.init()
        conn.has_shaken_hands = conn.sock.shake_hands()
        return bool(conn.has_shaken_hands)

    def _after_handshake(self, conn: TConn, done: Future[bool]) -> None:
        """Have a connection wait for its first request, as a kept one does for its next, or for more of a handshake."""
        if done.exception() is None and not done.result() and self.alive:
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
        else:
            self.finish_request(conn, done)

    def murder_pending(self) -> None:
        """End what has been awaited for too long. Handshakes end sooner than what is before them in the queue."""
        now = time.monotonic()
        if len(self.pending_conns) > _FEW and now < self._look_at:
            return
        self._look_at = now + ALIVE_SECONDS / 2
        self.pending_conns = deque(sorted(self.pending_conns, key=lambda conn: conn.timeout))
        super().murder_pending()

    def _is_inner(self, conn: TConn) -> bool:
        return self._is(self.inner, conn)

    @staticmethod
    def _is(whose: Whose | None, conn: TConn) -> bool:
        certificate = conn.sock.certificate if isinstance(conn.sock, ServerTlsSocket) else None
        return whose is not None and certificate is not None and whose(certificate)

    def notify(self) -> None:
        """Tell the master, unless that was done just now."""
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + ALIVE_SECONDS
            super().notify()

    def handle(self, conn: TConn) -> object:
        """Answer requests of a connection for as long as the next ones come soon, and nobody else waits."""
        messages = self.messages if self.is_plain or self._is(self.peer, conn) else ()
        step = partial(self._hear, messages=messages) if messages or self.rest else super().handle
        began, result = time.monotonic(), step(conn)
        while result is True and self._next_comes_soon(conn, began):
            result = step(conn)
        if conn.sock.fileno() < 0:  # it stalled and is gone: gunicorn would count a closed connection twice
            conn.sock = _Closed(conn.sock)
            return False
        if result is False:
            self._take_the_rest(conn)
            self._part_from(conn)
        return result

    def _hear(self, conn: TConn, messages: tuple[bytes, ...]) -> bool:
        """Answer one request; return whether the line stays.

        Messages of a party of the alliance, and `rest` requests of anyone, are read by `transport.peer_requests` before
        they are judged; and all else by gunicorn, also what is no request as that module reads them.
        """
        conn.init()  # which over TLS was done before hands were shaken
        line, heard, stays, close = conn.sock, Heard(conn.sock), False, _nothing
        is_rest = False
        if conn.is_http2 or conn.parser.unreader.buf.getvalue():  # it has read more than it answered
            return bool(super().handle(conn))
        try:
            with line.read_within(HEARING_SECONDS):
                begin = heard.recv()
                is_rest, request = begin.startswith(self.rest), None
                if is_rest or begin.startswith(messages):
                    is_anyones = is_rest or self.is_plain
                    request = read_request(heard if is_anyones else line, MAX_REST if is_rest else MAX_BODY, begin)
        except BadRequestError as error:
            if is_rest or self.is_plain:  # anyone may have sent it, and is told what is wrong as anyone is
                return self._hear_again(conn, heard)
            data = TOO_LONG if isinstance(error, TooLongError) else BAD_REQUEST
        except OSError:  # it stalled, or is gone
            return False
        else:
            if request is None:
                return self._hear_again(conn, heard) if begin else False
            conn.is_of_peer = not is_rest
            stays = request.stays and self.alive and len(self.keepalived_conns) < self.max_keepalived
            data, close = self._answer(request, conn, stays=stays, is_rest=is_rest)
        try:
            line.sendall(data)
        except OSError:
            return False
        finally:
            close()
        return stays

    def _hear_again(self, conn: TConn, heard: Heard) -> bool:
        """Have gunicorn read what was heard."""
        conn.parser.unreader.unread(bytes(heard.data))
        return bool(super().handle(conn))

    def _answer(
        self, request: PeerRequest, conn: TConn, *, stays: bool, is_rest: bool
    ) -> tuple[bytes, Callable[[], None]]:
        """Return an answer, and what is to be called when it has been sent."""
        face = self.wsgi.wsgi_app
        if isinstance(face, MessageFace) and not is_rest:
            answer = face.answer_peer(request, conn.sock, stays=stays)
            if answer is not None:
                return answer, _nothing
        line = {
            "wsgi.url_scheme": self.scheme,
            "gunicorn.socket": conn.sock,
            "REMOTE_ADDR": str(conn.client[0]),
            "SERVER_NAME": str(conn.server[0]),
            "SERVER_PORT": str(conn.server[1]),
        }
        dated = [("Date", _date(int(time.time())))] if is_rest else []
        return answer_request(self.wsgi, request.environ() | line, stays=stays, more=dated)

    def _part_from(self, conn: TConn) -> None:
        """Close a connection such that its client reads the answer to its end: here, and not in the thread that waits
        for all connections, where gunicorn would wait for each client to hang up.
        """
        if self._parting.acquire(blocking=False):
            try:
                close_graceful(conn.sock, REST_SECONDS)
            finally:
                self._parting.release()
        conn.sock = _Closed(conn.sock)

    @staticmethod
    def _take_the_rest(conn: TConn) -> None:
        """Read what a refused request has still to say, within bounds: a client that cannot send it reads no answer."""
        with suppress(Exception):  # whatever is wrong with it, the connection is closed next
            conn.parser.finish_body(deadline=time.monotonic() + REST_SECONDS)

    def _next_comes_soon(self, conn: TConn, began: float) -> bool:
        """Wait a little for a connection's next request, in a thread that has been with it since then."""
        of_peer = getattr(conn, "is_of_peer", False)
        if time.monotonic() - began >= (PEER_LINGER_SECONDS if of_peer else LINGER_SECONDS):
            return False
        if conn.is_http2 or conn.sock.fileno() < 0 or conn.parser.unreader.buf.getvalue():
            return False  # gunicorn takes care of what is here already
        if not conn.lingering.acquire(blocking=False):
            return False
        try:
            if not hasattr(conn, "waiting"):
                conn.waiting = select.poll()
                conn.waiting.register(conn.sock, select.POLLIN)
            for _ in range(PEER_LINGERS if of_peer else 1):
                if not self._may_linger():
                    break
                if conn.waiting.poll(LINGER_MILLISECONDS):
                    return self._may_linger()
            return False
        finally:
            conn.lingering.release()

    def _may_linger(self) -> bool:
        outer, inner = self.tpool._work_queue, self._inner._work_queue  # noqa: SLF001  it is not said otherwise
        return bool(self.alive and outer.empty() and inner.empty())


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Return the Date of all answers of a second, in Unix seconds."""
    return str(http_date(second))


def _nothing() -> None:
    """Nothing is to be done once an answer has been sent."""


class _Closed:
    """In the place of a socket that is closed, for gunicorn to close again."""

    def __init__(self, sock: socket.socket) -> None:
        sock.close()

    def fileno(self) -> int:
        """Return what a closed socket has."""
        return -1

    def setblocking(self, _flag: bool) -> None:  # noqa: FBT001  as in the standard library
        """Do nothing."""

    def shutdown(self, _how: int) -> None:
        """Fail as a closed socket does, which gunicorn expects."""
        raise OSError(errno.EBADF, "closed")

    def close(self) -> None:
        """Do nothing."""


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, make_app: Callable[[], Flask], options: dict[str, Any]) -> None:
        self._make_app = make_app
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        app = self._make_app()
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        return app


def serve(
    make_app: Callable[[], Flask],
    *,
    host: str,
    port: int,
    state: Path,
    workers: int,
    threads: int,
    tls: Tls | None,
    files: TlsSettings,
    inner: Whose | None = None,
    messages: tuple[bytes, ...] = (),
    rest: tuple[bytes, ...] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, over TLS if there is any. `make_app` runs in each worker, after the fork.

    Clients with `inner` certificates, whom others wait for, have half as many threads again, for them alone. `messages`
    are the paths of messages between the parties of the alliance, or how they begin; `rest` those of anyone's requests
    that are asked most, and have `MAX_REST` bytes at most.
    """
    _keep_little_memory()
    if isinstance(garbling.ENGINE, Arrays):
        log.warning(
            "labels are garbled over arrays, ten times slower: half_gates.c is not built (make setup, a C compiler),"
            " or Python has no OpenSSL that it shares"
        )
    run = state / "run"
    run.mkdir(parents=True, exist_ok=True)
    secured: dict[str, Any] = {}
    if tls is not None:
        # gunicorn asks for the context at every connection, so new certificates are used as soon as they are there. The
        # two files only tell it that there is TLS.
        secured = {
            "certfile": str(files.tls_certificate),
            "keyfile": str(files.tls_key),
            "ssl_context": lambda _config, _default: tls.server_context(),
        }
    whose = {
        "inner": None if inner is None else staticmethod(inner),
        "peer": None if tls is None or not messages else staticmethod(tls.is_of_alliance),
        "is_plain": tls is None and bool(messages or rest),
        "messages": tuple(b"POST " + path for path in messages),
        "rest": tuple(b"POST " + path for path in rest),
        "scheme": "http" if tls is None else "https",
    }
    _Server(
        make_app,
        {
            "bind": f"{host}:{port}",
            "workers": workers,
            "worker_class": type("Worker", (_Worker,), whose),
            "threads": threads,
            "worker_connections": _files_for_connections(),
            "keepalive": KEEP_ALIVE_SECONDS,
            "timeout": 60,
            "graceful_timeout": 8,
            "worker_tmp_dir": str(run),
            "control_socket_disable": True,
            "errorlog": "-",
            # Its warnings quote what is not HTTP, and a header that is malformed may hold an API key. No access log
            # either: paths and times of an insurer's checks are its own business.
            "loglevel": "error",
            "accesslog": None,
            "proc_name": "cover-lookup",
            "post_fork": _die_with_parent,
        }
        | secured,
    ).run()
