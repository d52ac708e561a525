"""Who sends an admin's request byte by byte holds none of the service's threads for good."""

import secrets
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from http.client import HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from certified import House, member
from governing import KEYS, signed
from live import wait_until

from service.admin.manifests import pins_json
from service.api_keys import ApiKeys, Role
from transport.certificates import SERVICE

if TYPE_CHECKING:
    import ssl

SERVER = """
import sys
from service import admin_rest, cli
admin_rest.BODY_SECONDS = 5.0
sys.exit(cli.main(["serve", "--state", sys.argv[1]]))
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    state = house.state(SERVICE, threads=4, admin_requests_a_second=1000)
    (state / "manifest.bin").write_bytes(signed(house.manifest.terms, "ann", "bo"))
    (state / "admins.json").write_text(pins_json(KEYS, 2))
    return house


def line_to(house: House) -> HTTPSConnection:
    return HTTPSConnection("127.0.0.1", house.ports[SERVICE], timeout=20, context=house.context(member(1)))


def status(house: House, path: str, key: str = "") -> int:
    line = line_to(house)
    try:
        line.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        return line.getresponse().status
    except OSError:
        return 0
    finally:
        line.close()


def begin(house: House, key: str, framing: str) -> "ssl.SSLSocket":
    context = house.context(member(1))
    line = line_to(house)
    line.connect()
    sock: ssl.SSLSocket = line.sock
    assert context is not None
    head = f"POST /v1/admin/proposals HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\n{framing}\r\n"
    sock.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
    return sock


def test_a_body_that_comes_byte_by_byte_holds_no_place_for_good(house: House) -> None:
    key = ApiKeys(house.state(SERVICE), time.time).make("ann", Role.ADMIN, 1, secrets.token_bytes)
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(house.state(SERVICE))])
    try:
        wait_until(lambda: status(house, "/readyz") == 200)
        with ExitStack() as stack:
            drips = [begin(house, key, framing) for framing in ("Content-Length: 100000", "Transfer-Encoding: chunked")]
            for drip in drips:  # as many as there are places
                stack.callback(drip.close)
                drip.sendall(b"100\r\n")
            wait_until(lambda: status(house, "/v1/admin/rules", key) == 503, 20)

            slow, stopped = drips

            def others_are_answered() -> bool:
                with suppress(OSError):  # it was hung up on
                    slow.sendall(b" ")
                return status(house, "/v1/admin/rules", key) == 200

            wait_until(others_are_answered, 30)
            answer = stopped.recv(1 << 12)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"request-timeout" in answer + stopped.recv(1 << 12)
    finally:
        process.terminate()
        process.wait(20)
