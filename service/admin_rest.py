"""The service's face for the alliance's admins and auditors, `/v1/admin/`: the manifest in force and its proposals.

Each endpoint says who may call it; `service.roles` refuses all others. What is answered is for reading: who signs reads
the bytes of the terms, which are in it, and computes the rest.
"""

import base64
import binascii
import re
import time
from dataclasses import asdict
from typing import Any

from flask import Flask, Response, jsonify, request
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from protocol import watermark
from protocol.encoding import decode
from protocol.manifest import AdminPins, Manifest, Rule, SignedManifest, Terms, china_day, day_of
from protocol.watermark import CURRENT_SECONDS
from service.admin.differences import difference, limit_text, time_text
from service.admin.manifests import describe
from service.api_keys import Action, Role
from service.audit import PAGE, AuditLog
from service.directory import DataDirectory
from service.proposals import MAX_COMMENT, MAX_TERMS, Proposal, Proposals, State, id_of
from service.published import Published
from service.roles import acting, holder, open_to
from transport.json_text import parse_json
from transport.lines import ServerTlsSocket
from transport.problems import HINT_OF_STATUS, Problem

MAX_JSON = 8 << 10
MAX_PROPOSAL_JSON = MAX_TERMS * 4 // 3 + MAX_JSON
"""A proposal's terms come in base64."""
BODY_SECONDS = 10.0
"""How long a body may take as a whole: reading it takes a place of those for API keys."""
_NUMBER = re.compile(r"[0-9]{1,15}")
BOTH = (Role.ADMIN, Role.AUDITOR)


def _require_one_line(text: str) -> None:
    if len(text) > MAX_COMMENT or not text.isprintable():
        raise ValidationError(f"a comment is one line of {MAX_COMMENT} characters at most")


class _ProposalSchema(Schema):
    terms = fields.String(required=True, validate=validate.Length(1, MAX_PROPOSAL_JSON))
    comment = fields.String(load_default="", validate=_require_one_line)


class _SignatureSchema(Schema):
    admin = fields.String(required=True, validate=validate.Length(1, 64))
    signature = fields.String(required=True, validate=validate.Regexp(r"\A[0-9a-f]{128}\Z"))


def serve(app: Flask, published: Published, pins: AdminPins, proposals: Proposals, directory: DataDirectory) -> None:
    """Add the endpoints. They are asked seldom, and say what all workers have done up to now."""
    _reading(app, published, pins, directory)

    @app.get("/v1/admin/proposals")
    @open_to(*BOTH)
    def list_proposals() -> Response:
        published.look_again()
        now = time.time()
        return jsonify({"proposals": [_entry(proposals, pins, one, now) for one in proposals.all()]})

    @app.get("/v1/admin/proposals/<proposal_id>")
    @open_to(*BOTH)
    def show_proposal(proposal_id: str) -> Response:
        published.look_again()
        proposal, now = proposals.get(proposal_id), time.time()
        return jsonify(_entry(proposals, pins, proposal, now) | _contents(published, proposals, proposal))

    @app.post("/v1/admin/proposals")
    @open_to(Role.ADMIN, to=Action.PROPOSE)
    def propose() -> tuple[Response, int, dict[str, str]]:
        body, now = _body(_ProposalSchema(), MAX_PROPOSAL_JSON), time.time()
        terms = _from_base64(body["terms"])
        acting(on=id_of(terms))
        proposal = proposals.propose(terms, body["comment"], holder().name, now)
        location = {"Location": f"/v1/admin/proposals/{proposal.id}"}
        return jsonify(_entry(proposals, pins, proposal, now)), 201, location

    @app.post("/v1/admin/proposals/<proposal_id>/signatures")
    @open_to(Role.ADMIN, to=Action.SIGN)
    def sign_proposal(proposal_id: str) -> Response:
        body, now = _body(_SignatureSchema()), time.time()
        admin, signature = body["admin"], bytes.fromhex(body["signature"])
        acting(admin=admin if admin in pins.keys else None)
        proposal = proposals.sign(proposal_id, admin, signature, holder().name, now)
        return jsonify(_entry(proposals, pins, proposal, now))

    @app.post("/v1/admin/proposals/<proposal_id>/publish")
    @open_to(Role.ADMIN, to=Action.PUBLISH)
    def publish_proposal(proposal_id: str) -> Response:
        _no_body()
        manifest = proposals.publish(proposal_id, holder().name, time.time())
        return jsonify({"serial": manifest.terms.serial, "hash": manifest.hash.hex()})

    @app.post("/v1/admin/proposals/<proposal_id>/withdraw")
    @open_to(Role.ADMIN, to=Action.WITHDRAW)
    def withdraw_proposal(proposal_id: str) -> Response:
        _no_body()
        now = time.time()
        return jsonify(_entry(proposals, pins, proposals.withdraw(proposal_id, holder().name, now), now))


def serve_audit(app: Flask, audit: AuditLog) -> None:
    """Add what admins did and were refused, by the number of each act's line."""

    @app.get("/v1/admin/audit")
    @open_to(*BOTH)
    def show_audit() -> Response:
        entries = audit.page(_after(request.args.get("after", "0")))
        shown = [asdict(act) | {"number": number, "at": time_text(act.at)} for number, act in entries]
        return jsonify({"entries": shown, "next": entries[-1][0] if len(entries) == PAGE else None})


def _after(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        hint = "give the number of the last entry that is known, or nothing"
        raise Problem(422, "invalid-request", "after is the number of an entry", hint=hint)
    return int(text)


def _reading(app: Flask, published: Published, pins: AdminPins, directory: DataDirectory) -> None:
    @app.get("/v1/admin/overview")
    @open_to(*BOTH)
    def overview() -> Response:
        published.look_again()
        manifest, who, now = published.newest()[1], holder(), time.time()
        terms = manifest.terms
        return jsonify(
            {
                "alliance": terms.alliance,
                "role": who.role,
                "name": who.name,
                "may": sorted(who.scope),
                "key_expires_at": time_text(who.expires_at),
                "now": time_text(now),
                "manifest": {
                    "serial": terms.serial,
                    "hash": manifest.hash.hex(),
                    "issued_at": time_text(terms.issued_at),
                    "valid_until": time_text(terms.valid_until),
                },
                "threshold": pins.threshold,
                "admins": [{"name": name, "public_key": key.hex()} for name, key in sorted(pins.keys.items())],
                "members": _members(manifest, directory, now),
            }
        )

    @app.get("/v1/admin/manifest")
    @open_to(*BOTH)
    def show_manifest() -> Response:
        published.look_again()
        data, manifest = published.newest()
        described = describe(decode(SignedManifest, data))
        return jsonify(described | {"serial": manifest.terms.serial, "signed": _base64(data)})

    @app.get("/v1/admin/rules")
    @open_to(*BOTH)
    def rules() -> Response:
        published.look_again()
        return jsonify({"rules": _rules(published.newest()[1], china_day(time.time()))})


# --- what is read --------------------------------------------------------------------------------------------------


def _body(schema: Schema, most: int = MAX_JSON) -> dict[str, Any]:
    """Return the request's JSON, of so many bytes at most, as it fits the schema."""
    hint = "send Content-Type: application/json, UTF-8, each name once"
    if not request.is_json:
        raise Problem(415, "unsupported-media-type", "the body is not declared as JSON", hint=hint)
    try:
        value = parse_json(_read(most))
    except (ValueError, RecursionError):
        raise Problem(400, "not-json", "the body is not JSON", hint=hint) from None
    loaded: dict[str, Any] = schema.load(value, unknown=RAISE)
    return loaded


def _no_body() -> None:
    """Read what there is of a body that says nothing, within bounds."""
    _read(MAX_JSON)


def _read(most: int) -> bytes:
    """Return the request's body, of so many bytes at most, or refuse it (`request-timeout`) after `BODY_SECONDS`."""
    request.max_content_length = most
    line = request.environ.get("gunicorn.socket")
    if not isinstance(line, ServerTlsSocket):  # plain HTTP is for alliances on one machine
        return request.get_data()
    try:
        with line.read_within(BODY_SECONDS):
            return request.get_data()
    except TimeoutError:
        detail = f"the body took more than {BODY_SECONDS:g} s"
        raise Problem(408, "request-timeout", detail, hint=HINT_OF_STATUS[408]) from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise Problem(422, "not-base64", "terms is not base64", hint="RFC 4648, section 4, with padding") from None


# --- what is told --------------------------------------------------------------------------------------------------


def _entry(proposals: Proposals, pins: AdminPins, proposal: Proposal, now: float) -> dict[str, Any]:
    state = proposals.state(proposal, now)
    return {
        "id": proposal.id,
        "state": state,
        "serial": proposal.serial,
        "hash": proposal.hash.hex(),
        "comment": proposal.comment,
        "proposed_by": proposal.proposed_by,
        "proposed_at": time_text(proposal.proposed_at),
        "expires_at": time_text(proposal.expires_at),
        "signed_by": sorted(proposal.signatures),
        "threshold": pins.threshold,
        "published_by": proposal.published_by if state is State.PUBLISHED else None,
        "withdrawn_by": proposal.withdrawn_by,
    }


def _contents(published: Published, proposals: Proposals, proposal: Proposal) -> dict[str, Any]:
    """Return what is signed, what it changes, and the difference, which who signs computes anew."""
    data, base = proposals.terms(proposal), published.by_hash(proposal.base)
    if base is None:
        hint = "the operator restores the folder of manifests from its backup"
        raise Problem(500, "base-missing", "the manifest that the proposal changes is missing", hint=hint)
    before = decode(SignedManifest, base).terms
    changes = difference(decode(Terms, before), decode(Terms, data))
    return {
        "terms": _base64(data),
        "base": _base64(before),
        "base_hash": proposal.base.hex(),
        "base_signed": _base64(base),
        "signatures": [{"admin": name, "signature": one.hex()} for name, one in sorted(proposal.signatures.items())],
        "difference": [change.plain() for change in changes],
    }


def _members(manifest: Manifest, directory: DataDirectory, now: float) -> list[dict[str, Any]]:
    until = watermark.newest(manifest, directory.watermarks())
    return [
        {
            "id": member.id,
            "group": member.group,
            "url": member.url,
            "current_until": time_text(until[member.id]) if member.id in until else None,
            "current": member.id in until and abs(now - until[member.id]) < CURRENT_SECONDS,
        }
        for member in manifest.terms.members
    ]


def _rules(manifest: Manifest, today: int) -> list[dict[str, Any]]:
    rules = manifest.terms.rules
    return [
        {
            "id": rule_id,
            "versions": [_version(rule, _state(manifest, rule, today)) for rule in _versions(rules, rule_id)],
        }
        for rule_id in dict.fromkeys(rule.id for rule in rules)
    ]


def _versions(rules: tuple[Rule, ...], rule_id: str) -> list[Rule]:
    return sorted((rule for rule in rules if rule.id == rule_id), key=lambda rule: rule.version, reverse=True)


def _state(manifest: Manifest, rule: Rule, today: int) -> str:
    if rule.valid_from > today:
        return "coming"
    return "in_force" if manifest.current_rule(rule.id, today) == rule else "past"


def _version(rule: Rule, state: str) -> dict[str, Any]:
    return {
        "version": rule.version,
        "products": list(rule.products),
        "subject_type": rule.subject_type,
        "window_days": rule.window_days,
        "measure": rule.measure,
        "limit": limit_text(rule),
        "currency": rule.currency,
        "budget": rule.budget,
        "recheck_budget": rule.recheck_budget,
        "budget_days": rule.budget_days,
        "valid_from": day_of(rule.valid_from).isoformat(),
        "min_current": rule.min_current,
        "state": state,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
