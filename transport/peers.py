"""Persistent HTTP connections to peers, on which the calls of a fan-out are made all at once (`transport.talks`).

One thread, several peers, no thread pool: a fan-out to four custodians takes as long as the slowest. A connection is
one call's at a time, and then kept for the next call of any thread. Over TLS whoever answers has shown the peer's own
certificate, at the connection's opening, and is asked about again at each use: it may have been revoked since.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event

from protocol.errors import ProtocolError
from transport.certificates import SERVICE, Holder
from transport.http_answers import MAX_ANSWER, request_bytes
from transport.lines import Line, place_of
from transport.names import Names
from transport.talks import CONNECT_SECONDS, Talk, hold
from transport.tls import Tls

log = logging.getLogger(__name__)

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
    most: int = MAX_ANSWER
    """Bytes that the answer may have."""


@dataclass(frozen=True)
class LateCall:
    """A call that is made when it is its turn to be sent, so that those before it are under way by then."""

    url: str
    to: Holder
    most: int
    make: Callable[[], Call] = field(repr=False)
    """Returns the call, to the same URL and holder."""


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


class _StrangerError(Exception):
    """The other end of a line is not who is called."""


class _NotMadeError(Exception):
    """A call could not be made, for the reason that is its cause: no fault of the peer's."""


class _Idle:
    """Connections that nobody uses just now, by address and peer, the last used first; closed with their owner."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str | None], list[Line]] = {}
        self._lock = threading.Lock()

    def take(self, call: Call | LateCall) -> Line | None:
        """Return a connection for a call, now the caller's; None if there is none."""
        with self._lock:
            lines = self._lines.get((call.url, call.to.member))
            return lines.pop() if lines else None

    def give(self, call: Call | LateCall, line: Line) -> None:
        """Keep a connection for other calls to the same peer."""
        with self._lock:
            self._lines.setdefault((call.url, call.to.member), []).append(line)

    def close(self, call: Call | LateCall | None = None) -> None:
        """Close all, or those to the peer of a call."""
        with self._lock:
            keys = list(self._lines) if call is None else [(call.url, call.to.member)]
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
        self._names = Names()
        self._told: dict[str, float] = {}

    def close(self) -> None:
        """Close the connections that no call uses."""
        self._idle.close()

    def call(self, call: Call, seconds: float) -> Reply | Unreachable:
        """Make one call and wait for at most that long."""
        return self.exchange([call], seconds)[0]

    def exchange(self, calls: Sequence[Call | LateCall], seconds: float) -> list[Reply | Unreachable]:
        """Make all calls at once, in at most `seconds`; results stand in the order of the calls."""
        replies = dict(self.replies(calls, seconds))
        return [replies[place] for place in range(len(calls))]

    def replies(self, calls: Sequence[Call | LateCall], seconds: float) -> Generator[tuple[int, Reply | Unreachable]]:
        """Make all calls at once, in at most `seconds`; yield the place of each, and what came of it, when it ends.

        They are made, and go on, in the thread that asks for the next; those under way when nobody does (`close`) are
        given up. A call on a kept connection that the peer has closed meanwhile is made once more on a new one, so a
        call must bear being made twice.
        """
        began = time.monotonic()
        deadline, looked_until = began + seconds, began + min(seconds, CONNECT_SECONDS)
        # What has a connection leaves on it; of the rest, all hosts are looked up before one is waited for.
        kept = [self._kept(call) for call in calls]
        looked_up = [None if line else self._begin_look_up(call) for call, line in zip(calls, kept, strict=True)]
        talks = [
            self._on_new(call, done, looked_until) if line is None else self._talk(call, line)
            for call, line, done in zip(calls, kept, looked_up, strict=True)
        ]

        def again(place: int) -> Talk | None:
            call, was_kept = calls[place], kept[place] is not None
            kept[place] = None
            if not was_kept or isinstance(talks[place].error, TimeoutError | _NotMadeError):
                return None
            self._idle.close(call)  # the peer may have gone, and with it all that were opened before
            until = min(deadline, time.monotonic() + CONNECT_SECONDS)
            return self._on_new(call, self._begin_look_up(call), until)

        for place in hold(talks, deadline, again):
            yield place, self._reply(calls[place], talks[place])

    def _reply(self, call: Call | LateCall, talk: Talk) -> Reply | Unreachable:
        if isinstance(talk.error, _NotMadeError) and talk.error.__cause__ is not None:
            raise talk.error.__cause__
        if talk.answer is None or talk.line is None:
            return Unreachable(self._is_timeout(call, talk.error))
        answer = talk.answer
        if answer.stays:
            self._idle.give(call, talk.line)
        else:
            talk.line.sock.close()
        content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        signature = answer.headers.get("lookup-signature", "")
        return Reply(answer.status, answer.body, content_type, signature, None if self._tls is None else call.to)

    # --- connections

    def _kept(self, call: Call | LateCall) -> Line | None:
        """Return a kept connection that is still good, now the caller's."""
        line = self._idle.take(call)
        if line is not None:
            try:
                self._require_peer(call, line)
            except _StrangerError:
                line.sock.close()
                return None
        return line

    def _begin_look_up(self, call: Call | LateCall) -> Event | None:
        with suppress(ValueError):
            return self._names.begin(place_of(call.url, secured=self._tls is not None))
        return None

    def _on_new(self, call: Call | LateCall, looked_up: Event | None, until: float) -> Talk:
        """Return a call on a connection that is still to be opened; its host is waited for until then."""
        talk, secured = self._talk(call), self._tls is not None
        try:
            place = place_of(call.url, secured=secured)
            addresses = self._names.addresses(place, looked_up, until)
        except (OSError, ValueError) as error:  # the latter from what is no address and no resolver takes
            talk.give_up(error)
        else:
            context = None if self._tls is None else self._tls.client_context()
            talk.on_new(place, addresses, context, lambda line: self._require_peer(call, line))
        return talk

    def _talk(self, call: Call | LateCall, line: Line | None = None) -> Talk:
        return Talk(call.most, partial(self._request, call), line)

    def _request(self, call: Call | LateCall) -> bytes:
        try:
            made = call.make() if isinstance(call, LateCall) else call
        except Exception as error:
            raise _NotMadeError from error
        host, _ = place_of(made.url, secured=self._tls is not None)
        return request_bytes(made.method, host, made.path, made.headers, made.body)

    def _require_peer(self, call: Call | LateCall, line: Line) -> None:
        """Refuse a line whose other end is not, or is no longer, who is called; also one opened with older files."""
        if self._tls is None:
            return
        if line.context is not self._tls.client_context():
            raise _StrangerError
        try:
            self._tls.require_peer(line.certificate, call.to)
        except ProtocolError as error:
            self._tell(call, error.hint)
            raise _StrangerError from None

    # --- faults

    def _is_timeout(self, call: Call | LateCall, error: Exception | None) -> bool:
        """Tell whether a call failed for want of time; log what a person must see to."""
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            # The reason is OpenSSL's own word: a certificate that we refuse, or the alert of a peer that refuses ours.
            self._tell(call, (error.reason or "no reason").lower().replace("_", " "))
        return isinstance(error, TimeoutError)

    def _tell(self, call: Call | LateCall, why: str) -> None:
        """Log why TLS fails, once a minute for a peer: that is no weather, and needs a person."""
        now = time.monotonic()
        if now - self._told.get(call.url, -TOLD_SECONDS) >= TOLD_SECONDS:
            self._told[call.url] = now
            log.warning("no TLS with %s at %s: %s", call.to, call.url, why)
