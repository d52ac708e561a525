"""Calls under way on lines to peers, all of a fan-out waited for at once: one that stands still holds up no other."""

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence

from transport.http_answers import BadAnswerError, HttpAnswer
from transport.lines import Address, Line, begin_line, secure

CONNECT_SECONDS = 0.25
"""How long one address of a peer may take to accept a connection, before its next is tried."""
_READ_BYTES = 64 << 10
_READS_AT_ONCE = 16


class Talk:
    """A request and its answer on a line that is open, or on a new one; `opened` judges a new one before it is used.

    `request` is asked for what is sent when that can leave.
    """

    def __init__(self, most: int, request: Callable[[], bytes], line: Line | None = None) -> None:
        self.line = line
        self.error: Exception | None = None
        self.answer: HttpAnswer | None = None
        self.try_until = float("inf")
        """When the address that is tried has had its time, by the monotonic clock."""
        self._request: Callable[[], bytes] | None = request
        self._out = memoryview(b"")
        self._reading = HttpAnswer(most)
        self._step: Callable[[bytearray], int] = self._write
        self._refused: OSError = TimeoutError()

    def on_new(
        self,
        place: tuple[str, int],
        addresses: Sequence[Address],
        context: ssl.SSLContext | None,
        opened: Callable[[Line], None],
    ) -> None:
        """Have it on a new line to one of these addresses; `opened` raises where the peer is not who it should be."""
        self._place, self._context, self._opened = place, context, opened
        self._addresses = list(addresses)
        self._step = self._connect

    def go_on(self, buffer: bytearray) -> int:
        """Do what can be done now; return what poll(2) should wait for, 0 when it has ended, well or with `error`."""
        if self.error is not None:
            return 0
        try:
            return self._step(buffer)
        except (ssl.SSLWantReadError, BlockingIOError):
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT
        except Exception as error:  # noqa: BLE001  kept for whoever asked; whatever it is, this line is at its end
            return self.give_up(error)

    def give_up(self, error: Exception) -> int:
        """End it, and its line."""
        self.error = error
        if self.line is not None:
            self.line.sock.close()
        return 0

    # --- the steps, each of which goes on to the next when it is done

    def _connect(self, _buffer: bytearray) -> int:
        """Begin with the next address; the last one's error counts."""
        while self._addresses:
            try:
                self.line = begin_line(self._place, self._addresses.pop(0), self._context)
            except OSError as error:
                self._refused = error
            else:
                self.try_until = time.monotonic() + CONNECT_SECONDS
                self._step = self._connected
                return select.POLLOUT
        raise self._refused

    def try_next(self, error: OSError) -> int:
        """Leave an address that takes no connection."""
        assert self.line is not None
        self.line.sock.close()
        self.try_until, self._refused, self._step = float("inf"), error, self._connect
        return self.go_on(bytearray())

    def _connected(self, buffer: bytearray) -> int:
        assert self.line is not None
        fault = self.line.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if fault:
            return self.try_next(OSError(fault, "no connection"))
        self.try_until = float("inf")
        if self._context is not None:
            self.line = secure(self.line)
        self._step = self._shake_hands
        return self._shake_hands(buffer)

    def _shake_hands(self, buffer: bytearray) -> int:
        assert self.line is not None
        if isinstance(self.line.sock, ssl.SSLSocket):
            self.line.sock.do_handshake()
        self._opened(self.line)
        self._step = self._write
        return self._write(buffer)

    def _write(self, _buffer: bytearray) -> int:
        assert self.line is not None
        if self._request is not None:
            self._out, self._request = memoryview(self._request()), None
        try:
            while self._out:
                self._out = self._out[self.line.sock.send(self._out) :]
        except BlockingIOError:
            return select.POLLOUT
        self._step = self._read
        return select.POLLIN

    def _read(self, buffer: bytearray) -> int:
        assert self.line is not None
        for _ in range(_READS_AT_ONCE):
            count = self.line.sock.recv_into(buffer)
            if not count:
                raise BadAnswerError("the answer breaks off")
            self._reading.take(memoryview(buffer)[:count])
            if self._reading.whole:
                self.answer = self._reading
                return 0
        # Others have their turn. A read takes a whole record of TLS, so nothing is left where poll does not see it.
        return select.POLLIN


def hold(talks: list[Talk], deadline: float, again: Callable[[int], Talk | None]) -> Iterator[int]:
    """Have all of them end: with an answer, with what went wrong, or with `TimeoutError` at the deadline. Yield the
    place of each when it has ended.

    `again` is told the place of one that went wrong, and may return another to take it. One thread may go on where
    another left off; those under way when nobody goes on (`close`) are given up.
    """
    poll, buffer = select.poll(), bytearray(_READ_BYTES)
    waiting: dict[int, int] = {}

    def waits(place: int, awaited: int) -> bool:
        """Wait for one unless it has ended, and tell which."""
        talk = talks[place]
        while not awaited:
            following = again(place) if talk.error is not None else None
            if following is None:
                return False
            talk = talks[place] = following
            awaited = talk.go_on(buffer)
        assert talk.line is not None
        handle = talk.line.sock.fileno()
        poll.register(handle, awaited)
        waiting[handle] = place
        return True

    def begun(place: int, talk: Talk) -> bool:
        # What comes too late does not even leave: who asks will not hear what came of it.
        late = time.monotonic() >= deadline
        return waits(place, talk.give_up(TimeoutError()) if late else talk.go_on(buffer))

    try:
        yield from [place for place, talk in enumerate(list(talks)) if not begun(place, talk)]
        while waiting:
            until = min(deadline, *(talks[place].try_until for place in waiting.values()))
            seconds = until - time.monotonic()
            ready = [handle for handle, _ in poll.poll(max(0.0, 1000 * seconds))]
            for handle in ready or [handle for handle, place in waiting.items() if talks[place].try_until <= until]:
                poll.unregister(handle)
                place = waiting.pop(handle)
                if not waits(place, talks[place].go_on(buffer) if ready else talks[place].try_next(TimeoutError())):
                    yield place
            if time.monotonic() >= deadline:
                break
    finally:
        late = list(waiting.values())
        for place in late:
            talks[place].give_up(TimeoutError())
    yield from late
