"""The service's HTTP face: what agents call."""

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flask import Flask, Response, jsonify
from werkzeug.wrappers import Request

from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.manifest import AdminPins, Manifest, open_manifest
from protocol.messages import CheckRequest, SignedBatch, SignedRelay
from protocol.party import ServiceParty
from protocol.progress import SignedReport
from service import admin_rest
from service.api_keys import ApiKeys
from service.config import Settings, load_keys
from service.console_page import add_console
from service.custodians import Custodians
from service.directory import DataDirectory
from service.limits import admin_rate
from service.proposals import Proposals
from service.published import Published
from service.relay import Relay
from service.roles import Caller, guard, open_to
from transport import internal, web
from transport.capture import Capture
from transport.certificates import REVOCATIONS_PATH
from transport.message_face import Answer, MessageFace, answer_of, read_message
from transport.peers import Peers
from transport.server import MAX_BODY
from transport.settings import SettingsError, load_pins
from transport.tls import Tls, require_agreed

M = TypeVar("M")


def open_service(state: Path) -> tuple[Settings, ServiceParty, bytes]:
    """Read and check everything; return settings, party and the signed manifest's bytes."""
    settings = Settings.load(state)
    keys = load_keys(state)
    pins: AdminPins = load_pins(settings.admins)
    try:
        data = settings.manifest.read_bytes()
        manifest: Manifest = open_manifest(data, pins, time.time())
        require_agreed(settings.tls, manifest)
        return settings, ServiceParty(keys, manifest), data
    except OSError as error:
        raise SettingsError(f"the manifest {settings.manifest} cannot be read: {error.strerror}") from None
    except ProtocolError as error:
        raise SettingsError(f"the manifest {settings.manifest} is refused ({error.code}): {error.hint}") from None


def make_app(state: Path, tls: Tls | None = None) -> Flask:
    """Return the WSGI application of the service; without `tls` it speaks plain HTTP, if the manifest has it so."""
    settings, party, manifest = open_service(state)
    directory = open_directory(settings, party)
    relay = Relay(party, Custodians(party, Peers(tls), directory), settings, secrets.token_bytes)
    return make_relay_app(settings, party, manifest, relay, directory, tls)


def open_directory(settings: Settings, party: ServiceParty) -> DataDirectory:
    """Return the alliance's data directory, in the state directory."""
    return DataDirectory(party.manifest, settings.state / "directory")


def make_relay_app(
    settings: Settings,
    party: ServiceParty,
    manifest: bytes,
    relay: Relay,
    directory: DataDirectory,
    tls: Tls | None = None,
) -> Flask:
    """Return the WSGI application over a relay; `manifest` is the signed manifest's bytes."""
    app = Flask("service", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    web.register(app)

    if tls is None and not party.manifest.terms.plain_http:
        raise SettingsError("the manifest has all parties speak TLS")
    captured = settings.capture if party.manifest.terms.local else None
    _messages(MessageFace(app, None if captured is None else Capture(captured)), party, relay, directory, tls)
    _documents(app, manifest, tls)
    _admin(app, settings, party, directory, tls)
    add_console(app)

    @app.get("/healthz")
    @open_to(Caller.ANYONE)
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    @open_to(Caller.ANYONE)
    def readyz() -> Response:
        party.manifest.require_current(party.manifest.hash, time.time())
        return jsonify({"status": "ready"})

    return app


def _messages(face: MessageFace, party: ServiceParty, relay: Relay, directory: DataDirectory, tls: Tls | None) -> None:
    def serve(path: str, kind: type[M], answer: Callable[[M], object], sender: Callable[[M], str]) -> None:
        """Answer messages; over TLS those alone that the very member that each says it is of sends."""

        def over_tls(request: Request) -> Answer:
            assert tls is not None
            tls.require_member(request.environ)  # before the body is read
            message = read_message(request, kind)
            tls.require_sender(request.environ, sender(message))
            return answer_of(answer(message))

        def plain(request: Request) -> Answer:
            body = encode(answer(read_message(request, kind)))
            signature = internal.sign_answer(party.keys.signing, path, request.get_data(), body)
            return body, [(internal.SIGNATURE_HEADER, signature)]

        face.add(path, plain if tls is None else over_tls)

    serve("/v1/checks", CheckRequest, relay.check, lambda message: message.signed.statement.requester)
    serve("/v1/deposits", SignedBatch, relay.deposit, lambda message: message.depositor)
    serve("/v1/relay", SignedRelay, relay.relay, lambda message: message.relay.sender)
    serve("/v1/watermarks", SignedReport, directory.exchange, lambda message: message.report.member)


def _admin(app: Flask, settings: Settings, party: ServiceParty, directory: DataDirectory, tls: Tls | None) -> None:
    """Add what admins and auditors call, and have every endpoint of the application refuse whom it is not for."""
    pins = load_pins(settings.admins)
    published = Published(settings.state / "manifests", pins, settings.manifest)
    guard(app, tls, ApiKeys(settings.state, time.time), admin_rate(party.manifest.terms.alliance, settings))
    proposals = Proposals(settings.state / "proposals", published, pins)
    admin_rest.serve(app, published, pins, proposals, directory)


def _documents(app: Flask, manifest: bytes, tls: Tls | None) -> None:
    @app.get("/v1/manifest")
    @open_to(Caller.MEMBER)
    def signed_manifest() -> Response:
        return Response(manifest, content_type=internal.CONTENT_TYPE)

    @app.get(REVOCATIONS_PATH)
    @open_to(Caller.MEMBER)
    def revocations() -> Response:
        newest = None if tls is None else tls.revocations.newest
        if newest is None:
            raise ProtocolError("no-revocations", "the service was given no revocation list")
        return Response(newest.pem, content_type="application/x-pem-file")
