"""Taps: what really goes over the wire to a live party, byte by byte, at the address that all others call."""

import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from certified import free_port

HANDSHAKE, APPLICATION_DATA = 22, 23


class Tap:
    """Carries connections from one port to another and keeps all that was said, a direction of a connection each."""

    def __init__(self, port: int, to: int) -> None:
        self.said: list[bytearray] = []
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", port))
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._carry, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _carry(self, client: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(client)
            try:
                server = stack.enter_context(socket.create_connection(("127.0.0.1", self._to), 5))
            except OSError:
                return  # it does not run yet
            other, said = {client: server, server: client}, {client: bytearray(), server: bytearray()}
            self.said += said.values()
            while not self._stopping.is_set():
                for end in select.select([client, server], [], [], 0.1)[0]:
                    try:
                        data = end.recv(1 << 16)
                        other[end].sendall(data)
                    except OSError:
                        return
                    if not data:
                        return
                    said[end] += data


def records_of(said: bytes) -> Iterator[int]:
    """Yield the type of each TLS record of a direction; whatever is none fails. The last may be cut short."""
    while len(said) >= 5:
        kind, version, size = said[0], said[1:3], int.from_bytes(said[3:5], "big")
        assert 20 <= kind <= APPLICATION_DATA, said[:32]
        assert version in (b"\x03\x01", b"\x03\x03"), said[:32]
        assert size <= (1 << 14) + 256
        yield kind
        said = said[5 + size :]


@contextmanager
def tapped(state: Path, url: str) -> Iterator[Tap]:
    """Tap a party that is not running and will be started in the block; it listens at another port until then."""
    port, aside = urlsplit(url).port, free_port()
    assert port is not None
    config = state / "config.toml"
    before = config.read_text(encoding="utf-8")
    config.write_text(re.sub(r"(?m)^port = \d+$", f"port = {aside}", before), encoding="utf-8")
    tap = Tap(port, aside)
    try:
        yield tap
    finally:
        config.write_text(before, encoding="utf-8")
        tap.close()
