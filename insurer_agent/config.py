"""The agent's settings, checked at start: a TOML file, and variables INSURER_AGENT_* that take its place."""

from dataclasses import dataclass, field
from pathlib import Path

from marshmallow import Schema, ValidationError, fields, validate, validates

from transport.redis_link import is_redis_url
from transport.settings import load_settings
from transport.tls import TlsSettings
from transport.tls_files import CA_FILE, CERTIFICATE_FILE, KEY_FILE

ENVIRONMENT_PREFIX = "INSURER_AGENT"
SETTINGS_FILE = "config.toml"


class _SettingsSchema(Schema):
    """What may be set. Paths are taken relative to the state directory; without `database`, one is started in it."""

    member_id = fields.String(required=True, validate=validate.Length(1, 64))
    host = fields.String(load_default="127.0.0.1")
    port = fields.Integer(required=True, validate=validate.Range(1, 65535))
    database = fields.String(load_default=None)
    manifest = fields.String(load_default="manifest.bin")
    admins = fields.String(load_default="admins.json")
    tls_key = fields.String(load_default=KEY_FILE)
    tls_certificate = fields.String(load_default=CERTIFICATE_FILE)
    ca_file = fields.String(load_default=CA_FILE)
    client_ca_file = fields.String(load_default=None)
    allow_plain_http = fields.Boolean(load_default=False)
    allow_local = fields.Boolean(load_default=False)
    workers = fields.Integer(load_default=1, validate=validate.Range(1, 64))
    threads = fields.Integer(load_default=16, validate=validate.Range(4, 256))
    check_seconds = fields.Float(load_default=2.0, validate=validate.Range(0.1, 60))
    deposit_seconds = fields.Float(load_default=20.0, validate=validate.Range(1, 300))
    deposit_jitter_seconds = fields.Float(load_default=20.0, validate=validate.Range(0, 3600))
    redis = fields.String(load_default=None, validate=is_redis_url)
    redis_seconds = fields.Float(load_default=0.05, validate=validate.Range(0.001, 10))
    checks_a_second = fields.Float(load_default=2000.0, validate=validate.Range(0.01, 1e6))
    checks_at_once = fields.Integer(load_default=20_000, validate=validate.Range(1, 10_000_000))
    policies_a_second = fields.Float(load_default=500.0, validate=validate.Range(0.01, 1e6))
    policies_at_once = fields.Integer(load_default=5000, validate=validate.Range(1, 10_000_000))
    batch_seconds = fields.Float(
        load_default=30.0, validate=validate.Range(1, 50)
    )  # within an Idempotency-Key's minute
    capture = fields.String(load_default=None, allow_none=True)

    @validates("database")
    def _is_a_dsn(self, value: str | None, **_: object) -> None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")) and "=" not in value:
            raise ValidationError("a PostgreSQL connection string: postgresql://user:password@host:port/name")


@dataclass(frozen=True)
class Settings:
    """The settings of one agent; see `_SettingsSchema` for defaults.

    Rates are those of REST requests under one API key: in all with `redis`, else in each worker process.
    A limit waits `redis_seconds` for Redis, and an Idempotency-Key four times as long. A batch is answered after
    `batch_seconds` at the latest, whatever is missing then.
    """

    state: Path
    member_id: str
    host: str
    port: int
    database: str | None = field(repr=False)
    manifest: Path
    admins: Path
    allow_local: bool
    workers: int
    threads: int
    check_seconds: float
    deposit_seconds: float
    deposit_jitter_seconds: float
    redis: str | None = field(repr=False)
    redis_seconds: float
    checks_a_second: float
    checks_at_once: int
    policies_a_second: float
    policies_at_once: int
    capture: Path | None
    tls: TlsSettings = field(default_factory=TlsSettings)
    batch_seconds: float = 30.0

    @classmethod
    def load(cls, state: Path) -> "Settings":
        """Read `state`/config.toml and the environment; raise `SettingsError` with what to change."""
        values = load_settings(_SettingsSchema, state / SETTINGS_FILE, ENVIRONMENT_PREFIX)
        for name in ("manifest", "admins", "capture"):
            if values[name] is not None:
                values[name] = state / values[name]
        return cls(state=state, tls=TlsSettings.taken_from(values, state), **values)
