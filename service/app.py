"""The service's HTTP face: what agents call."""

import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from threading import BoundedSemaphore
from typing import TypeVar

from flask import Flask, Response, jsonify, request

from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.messages import BatchOutcome, CheckOutcome, CheckRequest, SignedBatch, SignedRelay
from protocol.party import ServiceParty
from protocol.progress import SignedReport
from service import admin_rest
from service.acting import Acting
from service.api_keys import ApiKeys
from service.audit import AuditLog
from service.config import Settings, load_keys
from service.console_page import add_console
from service.custodians import Custodians
from service.directory import DataDirectory
from service.limits import admin_rate
from service.proposals import Proposals
from service.published import MANIFESTS, Published
from service.relay import Relay
from service.roles import Caller, guard, open_to
from transport import internal, web
from transport.capture import Capture
from transport.certificates import REVOCATIONS_PATH
from transport.http_answers import NOT_MODIFIED
from transport.manifests import BY_HASH_PATH, NEWEST_PATH
from transport.message_face import Answer, Asked, MessageFace, answer_of, read_message
from transport.peers import Peers
from transport.server import MAX_BODY
from transport.settings import SettingsError, load_pins
from transport.tls import Tls, require_agreed

M = TypeVar("M")
_HASH = re.compile(r"[0-9a-f]{64}")


def open_service(state: Path) -> tuple[Settings, Acting]:
    """Read and check everything; return the settings, and the service acting under the newest manifest."""
    settings = Settings.load(state)
    keys = load_keys(state)
    pins = load_pins(settings.admins)
    try:
        acting = Acting(keys, Published(settings.state / MANIFESTS, pins, settings.manifest))
        require_agreed(settings.tls, acting.now().manifest)
    except OSError as error:
        raise SettingsError(f"the manifest {settings.manifest} cannot be read: {error.strerror}") from None
    except ProtocolError as error:
        raise SettingsError(f"the manifest {settings.manifest} is refused ({error.code}): {error.hint}") from None
    return settings, acting


def make_app(state: Path, tls: Tls | None = None) -> Flask:
    """Return the WSGI application of the service; without `tls` it speaks plain HTTP, if the manifest has it so."""
    settings, acting = open_service(state)
    party = acting.now()
    directory = open_directory(settings, party)
    relay = Relay(party, Custodians(party, Peers(tls), directory), settings, secrets.token_bytes)
    return make_relay_app(settings, acting, relay, directory, tls)


def open_directory(settings: Settings, party: ServiceParty) -> DataDirectory:
    """Return the alliance's data directory, in the state directory."""
    return DataDirectory(party.manifest, settings.state / "directory")


def make_relay_app(
    settings: Settings,
    acting: Acting,
    relay: Relay,
    directory: DataDirectory,
    tls: Tls | None = None,
) -> Flask:
    """Return the WSGI application over a relay, which acts under each request's manifest."""
    app = Flask("service", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    web.register(app)

    party = acting.now()
    if tls is None and not party.manifest.terms.plain_http:
        raise SettingsError("the manifest has all parties speak TLS")
    captured = settings.capture if party.manifest.terms.local else None
    _messages(MessageFace(app, None if captured is None else Capture(captured)), acting, relay, directory, tls)
    _documents(app, acting.published, tls)
    _admin(app, settings, acting, directory, tls)
    add_console(app)

    @app.get("/healthz")
    @open_to(Caller.ANYONE)
    def healthz() -> Response:
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    @open_to(Caller.ANYONE)
    def readyz() -> Response:
        acting.now().manifest.require_unexpired(time.time())
        return jsonify({"status": "ready"})

    return app


def _messages(face: MessageFace, acting: Acting, relay: Relay, directory: DataDirectory, tls: Tls | None) -> None:
    def serve(path: str, kind: type[M], answer: Callable[[M], object], sender: Callable[[M], str]) -> None:
        """Answer messages; over TLS those alone that the very member that each says it is of sends."""

        def over_tls(request: Asked) -> Answer:
            assert tls is not None
            tls.require_member(request.environ)  # before the body is read
            message = read_message(request, kind)
            tls.require_sender(request.environ, sender(message))
            return answer_of(answer(message))

        def plain(request: Asked) -> Answer:
            body = encode(answer(read_message(request, kind)))
            signature = internal.sign_answer(acting.now().keys.signing, path, request.body, body)
            return body, [(internal.SIGNATURE_HEADER, signature)]

        face.add(path, plain if tls is None else over_tls)

    def check(asked: CheckRequest) -> CheckOutcome:
        return relay.under(acting.of_check(asked.signed.statement.manifest_hash)).check(asked)

    def deposit(signed: SignedBatch) -> BatchOutcome:
        return relay.under(acting.of_deposit(signed.manifest_hash)).deposit(signed)

    serve("/v1/checks", CheckRequest, check, lambda message: message.signed.statement.requester)
    serve("/v1/deposits", SignedBatch, deposit, lambda message: message.depositor)
    serve("/v1/relay", SignedRelay, lambda one: relay.under(acting.now()).relay(one), lambda one: one.relay.sender)
    serve("/v1/watermarks", SignedReport, directory.exchange, lambda message: message.report.member)


def _admin(app: Flask, settings: Settings, acting: Acting, directory: DataDirectory, tls: Tls | None) -> None:
    """Add what admins and auditors call, and have every endpoint of the application refuse whom it is not for."""
    pins, alliance = load_pins(settings.admins), acting.now().manifest.terms.alliance
    places = BoundedSemaphore(max(1, settings.threads // 2))  # checks have the others
    audit = AuditLog(settings.state)
    guard(app, tls, ApiKeys(settings.state, time.time), admin_rate(alliance, settings), places, audit)
    proposals = Proposals(settings.state / "proposals", acting.published, pins, audit)
    admin_rest.serve(app, acting.published, pins, proposals, directory)
    admin_rest.serve_audit(app, audit)


def _documents(app: Flask, published: Published, tls: Tls | None) -> None:
    @app.get(NEWEST_PATH)
    @open_to(Caller.MEMBER)
    def newest_manifest() -> Response:
        data, manifest = published.newest()
        etag = f'"{manifest.hash.hex()}"'
        if request.headers.get("If-None-Match") == etag:  # as agents write it; all else gets the whole
            return Response(status=NOT_MODIFIED, headers={"ETag": etag})
        return Response(data, content_type=internal.CONTENT_TYPE, headers={"ETag": etag})

    @app.get(BY_HASH_PATH + "<manifest_hash>")
    @open_to(Caller.MEMBER)
    def manifest_by_hash(manifest_hash: str) -> Response:
        data = published.by_hash(bytes.fromhex(manifest_hash)) if _HASH.fullmatch(manifest_hash) else None
        if data is None:
            raise ProtocolError("unknown-manifest", "the service has published no manifest of that hash")
        return Response(data, content_type=internal.CONTENT_TYPE)

    @app.get(REVOCATIONS_PATH)
    @open_to(Caller.MEMBER)
    def revocations() -> Response:
        newest = None if tls is None else tls.revocations.newest
        if newest is None:
            raise ProtocolError("no-revocations", "the service was given no revocation list")
        return Response(newest.pem, content_type="application/x-pem-file")
