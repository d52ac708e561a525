"""Malicious insiders of a live alliance: what a build of one role can do with its own keys, database and address.

`Insider` is a member that speaks to the real service with its own keys. `service_replaced` and `agent_replaced` end a
real process and serve, at its address and with its keys, whatever relay or custodian the attack needs.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from answers import Bent
from flask import Flask
from live import LiveAlliance, parent_of, pids_of, wait_until
from werkzeug.serving import make_server

from insurer_agent.agent import Agent
from insurer_agent.config import Settings as AgentSettings
from insurer_agent.custodian import Custodian
from insurer_agent.keys import AgentKeys
from insurer_agent.rest import make_app as make_agent_app
from protocol.encoding import encode
from protocol.manifest import verify_manifest
from protocol.messages import BatchOutcome, CheckOutcome, CheckRequest, SignedBatch
from protocol.party import Party, RandomBytes, ServiceParty
from service.app import make_relay_app, open_directory, open_service
from service.config import Settings as ServiceSettings
from service.custodians import Custodians
from service.relay import Relay
from transport.certificates import SERVICE, Holder
from transport.internal import CONTENT_TYPE, message_of
from transport.peers import Call, Peers, Reply, Unreachable
from transport.settings import load_pins
from transport.tls import open_tls


class Insider:
    """A member's keys in an attacker's hands, and its line to the service."""

    def __init__(self, alliance: LiveAlliance, number: int) -> None:
        state = alliance.member_state(number)
        settings = AgentSettings.load(state)
        self.manifest = verify_manifest(settings.manifest.read_bytes(), load_pins(settings.admins))
        self.party = Party(settings.member_id, AgentKeys.load(state).member, self.manifest)
        self.tls = open_tls(settings.tls, self.manifest, Holder(self.party.id))
        self._peers = Peers(self.tls)

    def post(self, path: str, body: bytes, *, to: str | None = None, seconds: float = 10.0) -> Reply | Unreachable:
        """Send bytes as they are, to the service unless a member is named."""
        target = self.manifest.terms.service_url if to is None else self.manifest.member(to).url
        holder = SERVICE if to is None else Holder(to)
        return self._peers.call(Call(target, path, body, {"Content-Type": CONTENT_TYPE}, to=holder), seconds)

    def check(self, request: CheckRequest) -> CheckOutcome:
        """Send a check; raises `ProtocolError` with the code of a refusal."""
        return message_of(CheckOutcome, self.post("/v1/checks", encode(request)))

    def deposit(self, signed: SignedBatch) -> BatchOutcome:
        """Send a batch of deposits; raises `ProtocolError` with the code of a refusal."""
        return message_of(BatchOutcome, self.post("/v1/deposits", encode(signed), seconds=15.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peers.close()


@contextmanager
def serving(app: Flask, url: str) -> Iterator[None]:
    """Serve an app at an address of loopback for the block."""
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    assert parts.port is not None
    listener = listen(parts.hostname, parts.port)
    server = make_server(parts.hostname, parts.port, Bent(app), threaded=True, fd=listener.fileno())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket at an address that a process which has just been killed may still hold."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_server((host, port))
        except OSError:
            assert time.monotonic() < deadline, f"port {port} is not given free"
            time.sleep(0.05)


def end(state: Any) -> None:  # noqa: ANN401  a Path
    """End the server processes of a state directory and wait until they are gone."""
    pids = pids_of(state)
    for pid in pids:
        if parent_of(pid) not in pids:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not pids_of(state))


R = TypeVar("R", bound=Relay)
MakeRelay = Callable[[ServiceParty, Custodians, ServiceSettings, RandomBytes], R]
"""A subclass of `Relay`, or what makes one."""


@contextmanager
def service_replaced(alliance: LiveAlliance, make_relay: MakeRelay[R]) -> Iterator[R]:
    """Replace the real service by a malicious one with its keys and its address; bring the real one back."""
    state = alliance.state / "service"
    settings, acting = open_service(state)
    party = acting.now()
    settings, peers = replace(settings, capture=None), Peers()
    directory = open_directory(settings, party)
    relay = make_relay(party, Custodians(party, peers, directory), settings, secrets.token_bytes)
    app = make_relay_app(settings, acting, relay, directory)
    end(state)
    try:
        with serving(app, service_url(alliance)):
            yield relay
    finally:
        with (alliance.state.parent / "service-restarted.log").open("ab") as log:
            command = [sys.executable, "-m", "service.cli", "serve", "--state", str(state)]
            alliance.adopt(subprocess.Popen(command, stdout=log, stderr=log))
        wait_until(lambda: alliance.ready_at(service_url(alliance)))


def service_url(alliance: LiveAlliance) -> str:
    url: str = alliance.local["service_url"]
    return url


@contextmanager
def agent_replaced(
    alliance: LiveAlliance, number: int, make_custodian: Callable[[Agent], Custodian]
) -> Iterator[Custodian]:
    """Replace a member's agent by one with a malicious custodian over the same keys and database."""
    alliance.kill(number)
    agent = Agent.open(alliance.member_state(number))
    agent = replace(agent, settings=replace(agent.settings, capture=None), custodian=make_custodian(agent))
    try:
        with serving(make_agent_app(agent), alliance.member(number)["url"]):
            yield agent.custodian
    finally:
        agent.database.close()
        alliance.restart(number)
