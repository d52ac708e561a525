"""The service's application with three admins, two of whom sign, over Flask's client; and proposals to it."""

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from world import make_world, seeded

from protocol import signing
from protocol.encoding import encode
from protocol.manifest import AdminPins, Manifest, Rule, SignedManifest, Terms, china_day, hash_of, sign_terms
from protocol.secret import Secret
from service.admin.manifests import pins_json
from service.api_keys import Action, ApiKeys, Role
from service.app import make_app
from service.audit import AuditLog
from service.config import save_keys
from service.proposals import Proposals
from service.published import Published

WORLD = make_world(5, shards=1, slots=5)
ADMINS = {admin: Secret(seeded(admin)(32)) for admin in ("ann", "bo", "chen")}
KEYS = {admin: signing.public_key(private) for admin, private in ADMINS.items()}
PINS = AdminPins(KEYS, 2)
DAY = 86_400


def first_terms(**changes: Any) -> Terms:  # noqa: ANN401  fields of the terms
    now = int(time.time())
    terms = replace(WORLD.manifest.terms, alliance="保险 alliance", issued_at=now - 10, valid_until=now + 30 * DAY)
    return replace(terms, **changes)


def signed(terms: Terms, *admins: str) -> bytes:
    return encode(SignedManifest(encode(terms), tuple(sign_terms(terms, name, ADMINS[name]) for name in admins)))


def next_version(terms: Terms, **changes: Any) -> Rule:  # noqa: ANN401  fields of a rule
    """Return the next version of the first rule, in force from today, with another limit unless told otherwise."""
    newest = max((rule for rule in terms.rules if rule.id == terms.rules[0].id), key=lambda rule: rule.version)
    changes = {"limit": newest.limit + 100, "valid_from": china_day(time.time())} | changes
    return replace(newest, version=newest.version + 1, **changes)


def following(terms: Terms, **changes: Any) -> Terms:  # noqa: ANN401  fields of the terms
    now = int(time.time())
    changes = {
        "serial": terms.serial + 1,
        "previous": hash_of(terms),
        "issued_at": now,
        "valid_until": now + 60 * DAY,
    } | changes
    return replace(terms, **changes)


def with_limit(terms: Terms, more: int = 100) -> Terms:
    """Return the next terms, in which the first rule has a version more, of so many fen more."""
    rule = next_version(terms, limit=terms.rules[0].limit + more)
    return following(terms, rules=(*terms.rules, rule))


def body_of(terms: Terms, comment: str = "") -> dict[str, str]:
    return {"terms": base64.b64encode(encode(terms)).decode(), "comment": comment}


def id_of(terms: Terms) -> str:
    return hashlib.sha256(encode(terms)).hexdigest()[:16]


def signature_of(terms: Terms, admin: str) -> dict[str, str]:
    return {"admin": admin, "signature": sign_terms(terms, admin, ADMINS[admin]).signature.hex()}


def write_state(state: Path, terms: Terms, pins: dict[str, bytes] = KEYS, threshold: int = 2, **settings: Any) -> None:  # noqa: ANN401  TOML values
    """Write what the service needs to start."""
    state.mkdir(mode=0o700, parents=True)
    save_keys(WORLD.service.keys, state)
    (state / "manifest.bin").write_bytes(signed(terms, "ann", "bo"))
    (state / "admins.json").write_text(pins_json(pins, threshold))
    settings = {"port": 1, "allow_plain_http": True, "admin_requests_a_second": 1e5} | settings
    (state / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))


@dataclass
class Told:
    status: int
    body: Any
    headers: Any

    @property
    def code(self) -> str:
        assert self.status >= 400, self.body
        assert self.headers["Content-Type"] == "application/problem+json"
        return str(self.body["code"])


class Board:
    """The service's application, and a key of each role."""

    def __init__(self, state: Path, terms: Terms | None = None, **settings: Any) -> None:  # noqa: ANN401  TOML values
        self.state = state
        self.terms = first_terms() if terms is None else terms
        write_state(state, self.terms, **settings)
        self.admin = self.key("an admin", Role.ADMIN)
        self.auditor = self.key("an auditor", Role.AUDITOR)
        self.app = make_app(state)

    def key(self, name: str, role: Role, *scope: Action, clock: Callable[[], float] = time.time, days: int = 7) -> str:
        return ApiKeys(self.state, clock).make(name, role, days, secrets.token_bytes, scope)

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None, **more: Any) -> Told:  # noqa: ANN401  JSON
        key = self.admin if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        sent = {"data": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        answer = self.app.test_client().open(path, method=method, headers=headers, **sent, **more)
        return Told(answer.status_code, answer.get_json(force=True, silent=True), answer.headers)

    def get(self, path: str, key: str | None = None) -> Any:  # noqa: ANN401  JSON
        answer = self.ask("GET", f"/v1/admin/{path}", key=key)
        assert answer.status == 200, answer
        return answer.body

    def propose(self, terms: Terms, comment: str = "") -> Told:
        return self.ask("POST", "/v1/admin/proposals", body_of(terms, comment))

    def sign(self, terms: Terms, *admins: str) -> None:
        for admin in admins:
            answer = self.ask("POST", f"/v1/admin/proposals/{id_of(terms)}/signatures", signature_of(terms, admin))
            assert answer.status == 200, answer

    def publish(self, terms: Terms) -> Told:
        return self.ask("POST", f"/v1/admin/proposals/{id_of(terms)}/publish")

    def withdraw(self, terms: Terms) -> Told:
        return self.ask("POST", f"/v1/admin/proposals/{id_of(terms)}/withdraw")

    def state_of(self, terms: Terms) -> str:
        return str(self.get(f"proposals/{id_of(terms)}")["state"])

    def newest(self) -> Manifest:
        """Return the newest manifest, as another process finds it."""
        return self.store()[0].newest()[1]

    def store(self) -> tuple[Published, Proposals]:
        """Return the store as another worker of the service has it."""
        published = Published(self.state / "manifests", PINS, self.state / "manifest.bin")
        return published, Proposals(self.state / "proposals", published, PINS, AuditLog(self.state))
