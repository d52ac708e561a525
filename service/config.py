"""The service's settings and keys, checked at start; variables LOOKUP_SERVICE_* take the place of the file's."""

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from marshmallow import Schema, fields, validate

from protocol import group, signing
from protocol.errors import ProtocolError
from protocol.group import Scalar
from protocol.party import ServiceKeys, random_scalar
from protocol.secret import Secret
from transport.redis_link import is_redis_url
from transport.settings import SettingsError, load_settings, refuse_readable_by_others, write_private
from transport.tls import TlsSettings
from transport.tls_files import CA_FILE, CERTIFICATE_FILE
from transport.tls_files import KEY_FILE as TLS_KEY_FILE

ENVIRONMENT_PREFIX = "LOOKUP_SERVICE"
SETTINGS_FILE = "config.toml"
KEY_FILE = "keys.json"
_NAMES = ("blinding", "signing")
FLIGHTS = 8
"""How many are under way at once in a process unless told, and no more than it has threads."""


class _SettingsSchema(Schema):
    """What may be set. Paths are taken relative to the state directory."""

    host = fields.String(load_default="127.0.0.1")
    port = fields.Integer(required=True, validate=validate.Range(1, 65535))
    manifest = fields.String(load_default="manifest.bin")
    admins = fields.String(load_default="admins.json")
    tls_key = fields.String(load_default=TLS_KEY_FILE)
    tls_certificate = fields.String(load_default=CERTIFICATE_FILE)
    ca_file = fields.String(load_default=CA_FILE)
    allow_plain_http = fields.Boolean(load_default=False)
    workers = fields.Integer(load_default=1, validate=validate.Range(1, 64))
    threads = fields.Integer(load_default=16, validate=validate.Range(2, 256))
    flights = fields.Integer(load_default=None, validate=validate.Range(1, 64))
    check_seconds = fields.Float(load_default=1.9, validate=validate.Range(0.1, 60))
    attempt_seconds = fields.Float(load_default=0.6, validate=validate.Range(0.05, 10))
    recheck_seconds = fields.Float(load_default=9.0, validate=validate.Range(0.1, 60))
    recheck_attempt_seconds = fields.Float(load_default=3.0, validate=validate.Range(0.05, 30))
    deposit_seconds = fields.Float(load_default=8.0, validate=validate.Range(0.5, 60))
    deposits_a_second = fields.Float(load_default=1000.0, validate=validate.Range(0.1, 1e6))
    checks_a_second = fields.Float(load_default=2000.0, validate=validate.Range(0.1, 1e6))
    rechecks_a_second = fields.Float(load_default=100.0, validate=validate.Range(0.1, 1e6))
    admin_requests_a_second = fields.Float(load_default=10.0, validate=validate.Range(0.1, 1e6))
    redis = fields.String(load_default=None, validate=is_redis_url)
    redis_seconds = fields.Float(load_default=0.05, validate=validate.Range(0.001, 10))
    lane_seconds = fields.Float(load_default=0.03, validate=validate.Range(0, 1))
    capture = fields.String(load_default=None, allow_none=True)


@dataclass(frozen=True)
class Settings:
    """The settings of the service.

    Rates are those that one member, or one API key of an admin, may keep up: in all with `redis`, else in each worker
    process. A limit waits `redis_seconds` for Redis. An attempt at a check of a batch, which has more lanes than
    `FEW_LANES`, has `lane_seconds` more for each of them. While a worker process asks custodians for `flights` checks,
    or groups of them, at once, further checks wait and leave together.
    """

    state: Path
    host: str
    port: int
    manifest: Path
    admins: Path
    workers: int
    threads: int
    check_seconds: float
    attempt_seconds: float
    recheck_seconds: float
    recheck_attempt_seconds: float
    deposit_seconds: float
    checks_a_second: float
    rechecks_a_second: float
    deposits_a_second: float
    redis: str | None = field(repr=False)
    redis_seconds: float
    capture: Path | None
    tls: TlsSettings = field(default_factory=TlsSettings)
    lane_seconds: float = 0.03
    admin_requests_a_second: float = 10.0
    flights: int = FLIGHTS

    @classmethod
    def load(cls, state: Path) -> "Settings":
        """Read `state`/config.toml and the environment; raise `SettingsError` with what to change."""
        values = load_settings(_SettingsSchema, state / SETTINGS_FILE, ENVIRONMENT_PREFIX)
        for name in ("manifest", "admins", "capture"):
            if values[name] is not None:
                values[name] = state / values[name]
        if values["flights"] is None:
            values["flights"] = min(FLIGHTS, values["threads"])
        elif values["flights"] > values["threads"]:
            raise SettingsError(
                f"flights is {values['flights']}: each takes a thread, of which there are {values['threads']} (threads)"
            )
        return cls(state=state, tls=TlsSettings.taken_from(values, state), **values)


def generate_keys() -> ServiceKeys:
    """Make ks and the key that signs internal calls."""
    return ServiceKeys(Secret(random_scalar(secrets.token_bytes)), Secret(secrets.token_bytes(32)))


def save_keys(keys: ServiceKeys, state: Path) -> None:
    """Write the key file; refuse to overwrite one: another ks would orphan every token."""
    file = state / KEY_FILE
    if file.exists():
        raise SettingsError(f"{file} exists; its blinding key would be lost. Choose another state directory")
    values = {"blinding": keys.blinding.reveal().hex(), "signing": keys.signing.reveal().hex()}
    write_private(file, (json.dumps(values, indent=1) + "\n").encode())


def load_keys(state: Path) -> ServiceKeys:
    """Read the key file; raise `SettingsError` if it is missing, readable by others or damaged."""
    file = state / KEY_FILE
    try:
        refuse_readable_by_others(file)
        data = json.loads(file.read_bytes())
        blinding, signing_key = (bytes.fromhex(data[name]) for name in _NAMES)
        group.scalar(blinding)
        signing.public_key(Secret(signing_key))
    except OSError as error:
        raise SettingsError(f"the key file {file} cannot be read: {error.strerror}; run lookup-service init") from None
    except (ValueError, KeyError, TypeError, ProtocolError):
        raise SettingsError(f"the key file {file} is damaged; restore it from its backup") from None
    return ServiceKeys(Secret(blinding), Secret(signing_key))


def public_keys(keys: ServiceKeys) -> dict[str, str]:
    """Return what the manifest says of the service, as hex."""
    return {
        "blinding_key": group.multiply_base(Scalar(keys.blinding.reveal())).hex(),
        "signing_key": signing.public_key(keys.signing).hex(),
    }
