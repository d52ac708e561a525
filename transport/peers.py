"""Persistent HTTP connections to peers, on which all requests are written before any answer is read.

One thread, several peers, no thread pool: a fan-out to four custodians takes as long as the slowest. A connection is
one call's at a time, and then kept for the next call of any thread. Over TLS whoever answers has shown the peer's own
certificate, at the connection's opening, and is asked about again at each use: it may have been revoked since.
"""

import logging
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocol.errors import ProtocolError
from transport.certificates import SERVICE, Holder
from transport.http_answers import BadAnswerError, HttpAnswer, request_bytes
from transport.lines import Line, begin_line, left, shake_hands
from transport.tls import Tls

log = logging.getLogger(__name__)

LAST_MOMENT_SECONDS = 0.01
TOLD_SECONDS = 60.0


@dataclass(frozen=True)
class Call:
    """A request to a peer: base URL, path, body and headers, and whose certificate it must show over TLS."""

    url: str
    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    to: Holder = SERVICE
    method: str = "POST"


@dataclass(frozen=True)
class Reply:
    """What a peer answered; `sender` says who that was where TLS shows it."""

    status: int
    body: bytes = field(repr=False)
    content_type: str
    signature: str = ""
    sender: Holder | None = None


@dataclass(frozen=True)
class Unreachable:
    """No answer was had: the peer refused the connection, broke it off, or `timed_out`."""

    timed_out: bool


class _FaultError(Exception):
    def __init__(self, *, timed_out: bool) -> None:
        super().__init__()
        self.timed_out = timed_out


class _Idle:
    """Connections that nobody uses just now, by address and peer, the last used first; closed with their owner."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, Holder], list[Line]] = {}
        self._lock = threading.Lock()

    def take(self, call: Call) -> Line | None:
        """Return a connection for a call, now the caller's; None if there is none."""
        with self._lock:
            lines = self._lines.get((call.url, call.to))
            return lines.pop() if lines else None

    def give(self, call: Call, line: Line) -> None:
        """Keep a connection for other calls to the same peer."""
        with self._lock:
            self._lines.setdefault((call.url, call.to), []).append(line)

    def close(self, call: Call | None = None) -> None:
        """Close all, or those to the peer of a call."""
        with self._lock:
            keys = list(self._lines) if call is None else [(call.url, call.to)]
            lines = [line for key in keys for line in self._lines.pop(key, ())]
        for line in lines:
            line.sock.close()

    def __del__(self) -> None:
        self.close()


class Peers:
    """Calls to peers; safe to share between threads. With `tls` it calls https:// addresses alone, else http://."""

    def __init__(self, tls: Tls | None = None) -> None:
        self._tls = tls
        self._idle = _Idle()
        self._told: dict[str, float] = {}

    def close(self) -> None:
        """Close the connections that no call uses."""
        self._idle.close()

    def call(self, call: Call, seconds: float) -> Reply | Unreachable:
        """Make one call and wait for at most that long."""
        return self.exchange([call], seconds)[0]

    def exchange(self, calls: Sequence[Call], seconds: float) -> list[Reply | Unreachable]:
        """Write all calls, then read all answers, in at most `seconds`; results stand in the order of the calls.

        A call on a kept connection that the peer has closed meanwhile is made once more on a new one, so a call must
        bear being made twice.
        """
        deadline = time.monotonic() + seconds
        # 1. What has a connection leaves at once; 2. the rest as soon as its connection is open.
        written = [self._on_kept(call, deadline) for call in calls]
        places = [place for place, on in enumerate(written) if on is None]
        fresh = dict(zip(places, self._on_new([calls[place] for place in places], deadline), strict=True))
        # 3. All answers, in turn.
        return [
            self._answer(call, written[place] or fresh[place], place in fresh, deadline)
            for place, call in enumerate(calls)
        ]

    def _answer(
        self,
        call: Call,
        on: Line | _FaultError,
        fresh: bool,  # noqa: FBT001  from exchange alone
        deadline: float,
    ) -> Reply | Unreachable:
        try:
            if isinstance(on, _FaultError):
                raise on
            try:
                return self._receive(call, on, deadline)
            except _FaultError as fault:
                if fault.timed_out or fresh:
                    raise
                self._idle.close(call)  # the peer may have gone, and with it all that were opened before
            (again,) = self._on_new([call], deadline)
            if isinstance(again, _FaultError):
                raise again
            return self._receive(call, again, deadline)
        except _FaultError as fault:
            return Unreachable(fault.timed_out)

    # --- connections

    def _on_kept(self, call: Call, deadline: float) -> Line | _FaultError | None:
        """Write a call on a kept connection and return it; None if there is none that is good."""
        connection = self._idle.take(call)
        if connection is None:
            return None
        try:
            self._require_peer(call, connection)
            self._send(connection, call, deadline)
        except _FaultError as fault:
            connection.sock.close()
            return fault if fault.timed_out else None
        return connection

    def _on_new(self, calls: Sequence[Call], deadline: float) -> list[Line | _FaultError]:
        """Open a connection for each call, all at once, and write each call as soon as its own is open."""
        lines: dict[Line, int] = {}
        found: list[Line | _FaultError] = []
        for call in calls:
            try:
                context = None if self._tls is None else self._tls.client_context()
                line = begin_line(call.url, context, deadline)
                lines[line] = len(found)
                found.append(_FaultError(timed_out=True))  # until its hands are shaken
            except (OSError, ValueError) as error:  # the latter from what is no address and no resolver takes
                found.append(self._fault(call, error))
        for line, failed in shake_hands(lines, deadline):
            call = calls[lines[line]]
            try:
                if failed is not None:
                    raise self._fault(call, failed)
                self._require_peer(call, line)
                self._send(line, call, deadline)
            except _FaultError as fault:
                line.sock.close()
                found[lines[line]] = fault
            else:
                found[lines[line]] = line
        return found

    def _require_peer(self, call: Call, line: Line) -> None:
        """Refuse a line whose other end is not, or is no longer, who is called; also one opened with older files."""
        if self._tls is None:
            return
        if line.context is not self._tls.client_context():
            raise _FaultError(timed_out=False)
        try:
            self._tls.require_peer(line.certificate, call.to)
        except ProtocolError as error:
            self._tell(call, error.hint)
            raise _FaultError(timed_out=False) from None

    # --- HTTP

    def _send(self, connection: Line, call: Call, deadline: float) -> None:
        try:
            left(deadline)
            connection.sock.deadline = deadline
            request = request_bytes(call.method, connection.host, call.path, call.headers, call.body)
            connection.sock.sendall(request)
        except (OSError, ValueError) as error:
            raise self._fault(call, error) from None

    def _receive(self, call: Call, connection: Line, deadline: float) -> Reply:
        # An answer that arrived while a slower peer was waited for still counts: a moment is left to take it in.
        connection.sock.deadline = max(deadline, time.monotonic() + LAST_MOMENT_SECONDS)
        try:
            answer = HttpAnswer.read(connection.sock.recv_into)
        except (OSError, BadAnswerError) as error:
            connection.sock.close()
            raise self._fault(call, error) from None
        if answer.stays:
            self._idle.give(call, connection)
        else:
            connection.sock.close()
        content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        signature = answer.headers.get("lookup-signature", "")
        return Reply(answer.status, answer.body, content_type, signature, None if self._tls is None else call.to)

    # --- faults

    def _fault(self, call: Call, error: Exception) -> _FaultError:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            # The reason is OpenSSL's own word: a certificate that we refuse, or the alert of a peer that refuses ours.
            self._tell(call, (error.reason or "no reason").lower().replace("_", " "))
        return _FaultError(timed_out=isinstance(error, TimeoutError))

    def _tell(self, call: Call, why: str) -> None:
        """Log why TLS fails, once a minute for a peer: that is no weather, and needs a person."""
        now = time.monotonic()
        if now - self._told.get(call.url, -TOLD_SECONDS) >= TOLD_SECONDS:
            self._told[call.url] = now
            log.warning("no TLS with %s at %s: %s", call.to, call.url, why)
