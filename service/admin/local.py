"""A whole alliance on one machine: real processes on loopback, one gunicorn a member and one for the service.

For trying it out, for the demonstration, the tests and the load tests. Everything is written under one state
directory; starting again on the same directory brings the same alliance back.
"""

import json
import secrets
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psycopg
from cryptography.hazmat.primitives.serialization import Encoding
from psycopg import sql
from psycopg.conninfo import make_conninfo

from protocol import signing
from protocol.encoding import decode, encode
from protocol.manifest import SignedManifest, Terms, hash_of
from protocol.secret import Secret
from protocol.stamps import as_of_tick, tick_at
from service.admin.authority import CertificateAuthority, read_request
from service.admin.manifests import add_signature, build_terms, load_admin_key, pins_json, unsigned
from service.admin.processes import Processes, ProcessFailedError, run_all
from service.admin.rules import read_rules
from service.published import MANIFESTS, Published
from transport.certificates import SERVICE as SERVICE_HOLDER
from transport.certificates import Holder, read_certificate, spki_hash
from transport.redis_link import connection_pool
from transport.settings import SettingsError, load_pins, write_private
from transport.tls_files import CA_FILE, CERTIFICATE_FILE, CRL_FILE, REQUEST_FILE

AGENT = "insurer_agent.cli"
SERVICE = "service.cli"
ALLIANCE = "local"
VALID_DAYS = 30
START_SECONDS = 120
DEPOSIT_SECONDS = 3600
ROUND_SECONDS = 12
"""For a batch of deposits: many processes share few cores."""
_AT_ONCE = 4


@dataclass(frozen=True)
class LocalOptions:
    """What `alliance local` was asked for. `database` is a PostgreSQL to use instead of the embedded one, `rules`
    a file of rules for the first start, `redis` the URL of a Redis for the service and all agents.
    """

    members: int
    policies: Path
    state: Path
    port_base: int | None
    shards: int
    database: str | None
    capture: bool
    rules: Path | None = None
    redis: str | None = field(default=None, repr=False)
    tick_seconds: int = 1
    jitter_seconds: float = 0.3
    plain_http: bool = False
    admins: int = 1
    """Admins, of whom more than half must sign a manifest."""


class _StoppedError(Exception):
    """SIGINT or SIGTERM arrived."""


def run_local(options: LocalOptions) -> int:
    """Run the alliance until SIGINT or SIGTERM; then end all its processes. Return the exit status."""
    alliance = _Alliance(options)
    with _stoppable():
        try:
            alliance.start()
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            alliance.watch()
        except _StoppedError:
            return 0
        except ProcessFailedError as error:
            say(f"alliance local: {error}")
            return 1
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            alliance.processes.end()
            say("all processes have ended")
    return 0


def say(text: str) -> None:
    """Tell progress on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def _stoppable() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _StoppedError

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Alliance:
    """The alliance's directories and processes."""

    def __init__(self, options: LocalOptions) -> None:
        self._options = options
        self._state = options.state.resolve()
        self._ids = [f"insurer-{number:02d}" for number in range(1, options.members + 1)]
        self._check_options()
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._logs = self._state / "logs"
        self.processes = Processes(self._logs)
        self._urls: dict[str, str] = {}
        self._service_url = ""
        self._context: ssl.SSLContext | None = None

    def _check_options(self) -> None:
        if not 1 <= self._options.shards <= 4096:  # noqa: PLR2004  the manifest's bounds
            raise SettingsError("an alliance has 1 to 4096 shards")
        if (
            self._options.port_base is not None
            and not 1 <= self._options.port_base <= 65535 - self._options.members - 1
        ):
            raise SettingsError("--port-base and the ports after it, one a member and one more, are 1 to 65535")
        if self._options.members < 5:  # noqa: PLR2004  SPEC.md, section 4
            raise SettingsError("an alliance has at least 5 members")
        if not 1 <= self._options.admins <= 9:  # noqa: PLR2004  nobody tries out more
            raise SettingsError("--admins is 1 to 9")
        if self._options.redis is not None:
            connection_pool(self._options.redis, 1.0)  # which says what is wrong
        missing = [name for name in self._ids if not (self._options.policies / f"{name}.csv").is_file()]
        if missing:
            raise SettingsError(f"{self._options.policies} has no {missing[0]}.csv")
        marker = self._state / "alliance.json"
        if self._state.exists() and any(self._state.iterdir()) and not marker.exists():
            raise SettingsError(f"{self._state} is not empty and not the state of a local alliance; choose another")
        if marker.exists():
            before = {"plain_http": False, "admins": 1} | json.loads(marker.read_text(encoding="utf-8"))
            if before != self._shape:
                raise SettingsError(
                    f"{self._state} holds an alliance of {before['members']} members and {before['shards']} shards,"
                    f" {'over plain HTTP' if before['plain_http'] else 'over TLS'}, with {before['admins']} admins"
                )

    @property
    def _shape(self) -> dict[str, Any]:
        """What cannot be another when an alliance is brought back."""
        options = self._options
        shape = {"members": options.members, "shards": options.shards, "plain_http": options.plain_http}
        return shape | {"admins": options.admins}

    def start(self) -> None:
        """Bring everything up, import all policies, and wait until checks see them."""
        state, began = self._state, time.monotonic()
        (state / "alliance.json").write_text(json.dumps(self._shape) + "\n", encoding="utf-8")
        manifest = self._manifest()
        terms = decode(Terms, manifest.terms)
        self._urls = {member.id: member.url for member in terms.members}
        self._service_url = terms.service_url
        if not self._options.plain_http:
            self._renew_certificates()
        else:
            say("PLAIN HTTP: nothing protects the connections between these processes")
        keys = self._databases_and_keys()
        say(f"starting the service and {len(self._ids)} agents")
        self.processes.start("service", SERVICE, "serve", "--state", str(state / "service"))
        pids = {
            name: self.processes.start(name, AGENT, "serve", "--state", str(self._member(name))).pid
            for name in self._ids
        }
        self._wait_until_ready()
        self._write_local(keys, pids)
        self._import()
        self._wait_until_visible(keys, terms.tick_seconds)
        say(f"ready after {time.monotonic() - began:.0f} s; see {state / 'local.json'}")

    def watch(self) -> None:
        """Say when a process ends; go on until stopped, as an alliance does when one of its members fails."""
        gone: set[str] = set()
        while True:
            time.sleep(0.5)
            for name, status in self.processes.ended():
                if name not in gone:
                    gone.add(name)
                    say(f"{name} has ended with status {status}; the others go on")

    def _run(self, commands: list[tuple[str, list[str]]]) -> None:
        for _ in run_all(commands, at_once=_AT_ONCE, logs=self._logs):
            pass

    # --- keys and manifest

    def _member(self, name: str) -> Path:
        return self._state / "members" / name

    def _manifest(self) -> SignedManifest:
        """Return the signed manifest, made now if this is the first start."""
        file = self._state / "service" / "manifest.bin"
        if file.exists():
            say("bringing an alliance back")
            pins = load_pins(file.with_name("admins.json"))
            newest, _ = Published(file.with_name(MANIFESTS), pins, file).newest()  # which agents have, too
            return self._renewed(decode(SignedManifest, newest))
        for half_made in ("members", "service", "admin", "ca"):  # an earlier start was stopped while it made keys
            shutil.rmtree(self._state / half_made, ignore_errors=True)
        say(f"making keys for the service and {len(self._ids)} members")
        ports = _ports(self._options.port_base, len(self._ids) + 1)
        salt = self._state / "salt"
        salt.unlink(missing_ok=True)
        self._run([("salt", [AGENT, "salt", str(salt)])])
        scheme = "http" if self._options.plain_http else "https"
        service_url = f"{scheme}://127.0.0.1:{ports[0]}"
        commands = [("service init", [SERVICE, "init", "--state", str(self._state / "service"), "--url", service_url])]
        for name, port in zip(self._ids, ports[1:], strict=True):
            url = f"{scheme}://127.0.0.1:{port}"
            arguments = ["--state", str(self._member(name)), "--member", name, "--url", url, "--salt-file", str(salt)]
            commands.append((f"{name} init", [AGENT, "init", *arguments]))
        self._run(commands)
        salt.unlink()  # every member has it in its key file; the service must not
        terms = build_terms(
            alliance=ALLIANCE,
            serial=1,
            enrolments=[_json(self._member(name) / "enrolment.json") for name in self._ids],
            service=_json(self._state / "service" / "service.json"),
            shards=self._options.shards,
            expected_persons=0,
            tick_seconds=self._options.tick_seconds,
            valid_days=VALID_DAYS,
            local=True,
            tls_authority=None if self._options.plain_http else self._certify(service_url),
            book=None if self._options.rules is None else read_rules(self._options.rules),
        )
        return self._sign(terms)

    def _certify(self, service_url: str) -> bytes:
        """Make a CA and issue a certificate to every party; return the CA's name in the manifest."""
        say("issuing certificates")
        authority = CertificateAuthority.create(self._state / "ca", ALLIANCE)
        urls = {name: str(_json(self._member(name) / "enrolment.json")["url"]) for name in self._ids}
        for holder, state in self._parties().items():
            url = service_url if holder.member is None else urls[holder.member]
            certificate = authority.issue(read_request(state / REQUEST_FILE), holder, url, VALID_DAYS)
            for name in (CA_FILE, CRL_FILE):
                shutil.copyfile(self._state / "ca" / name, state / name)
            write_private(state / CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM))
        return spki_hash(authority.certificate)

    def _renew_certificates(self) -> None:
        """Renew what is about to expire, and the revocation list with it."""
        authority, soon = CertificateAuthority(self._state / "ca"), time.time() + VALID_DAYS * 86_400 / 2
        old = {state: read_certificate(state / CERTIFICATE_FILE) for state in self._parties().values()}
        ending = {state: one for state, one in old.items() if one.not_valid_after_utc.timestamp() < soon}
        if ending:
            say(f"renewing {len(ending)} certificates")
            authority.publish()
        for state, certificate in ending.items():
            renewed = authority.renew(certificate, None, VALID_DAYS)
            write_private(state / CERTIFICATE_FILE, renewed.public_bytes(Encoding.PEM))
        # Agents get it from the service, too; their own copy is only there from the first moment on.
        for state in old:
            shutil.copyfile(self._state / "ca" / CRL_FILE, state / CRL_FILE)

    def _parties(self) -> dict[Holder, Path]:
        return {SERVICE_HOLDER: self._state / "service"} | {Holder(name): self._member(name) for name in self._ids}

    def _sign(self, terms: Terms) -> SignedManifest:
        admins, signed = self._admins(), unsigned(terms)
        threshold = len(admins) // 2 + 1
        for name in sorted(admins)[:threshold]:
            signed = add_signature(signed, name, admins[name])
        pins = pins_json({name: signing.public_key(key) for name, key in admins.items()}, threshold)
        # The service's copy is written last: it says that the first start came this far.
        for directory in (*map(self._member, self._ids), self._state / "service"):
            (directory / "admins.json").write_text(pins, encoding="utf-8")
            write_private(directory / "manifest.bin", encode(signed))
        return signed

    def _admins(self) -> dict[str, Secret]:
        """Return the admins' keys, made now if there are none."""
        folder, keys = self._state / "admin", {}
        folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(1, self._options.admins + 1):
            file = folder / f"admin-{number}.key"
            if not file.exists():
                write_private(file, secrets.token_bytes(32).hex().encode() + b"\n")
            keys[file.stem] = load_admin_key(file)
        return keys

    def _renewed(self, signed: SignedManifest) -> SignedManifest:
        """Return the manifest, signed anew for another month if it is about to expire."""
        terms, now = decode(Terms, signed.terms), int(time.time())
        if terms.valid_until - now > VALID_DAYS * 86_400 // 2:
            return signed
        valid_until = now + VALID_DAYS * 86_400
        renewed = replace(
            terms, serial=terms.serial + 1, previous=hash_of(terms), issued_at=now, valid_until=valid_until
        )
        return self._sign(renewed)

    # --- databases, settings, API keys

    def _databases_and_keys(self) -> dict[str, str]:
        """Have a database for each member, write the settings, and return an API key for each."""
        server = self._options.database or self._embedded()
        create_databases(server, [_database(name) for name in self._ids])
        capture = self._state / "capture" if self._options.capture else None
        redis: dict[str, Any] = {}
        if self._options.redis is not None:
            redis = {"redis": self._options.redis, "redis_seconds": 0.3}  # many processes share few cores
        _write_settings(
            self._state / "service",
            port=_port(self._service_url),
            allow_plain_http=self._options.plain_http or None,
            deposit_seconds=ROUND_SECONDS,
            flights=1,  # service and custodians share few cores: what leaves earlier waits there, and alone
            **redis,
            capture=capture and capture / "service.jsonl",
        )
        for name in self._ids:
            _write_settings(
                self._member(name),
                member_id=name,
                port=_port(self._urls[name]),
                database=make_conninfo(server, dbname=_database(name)),
                allow_local=True,
                allow_plain_http=self._options.plain_http or None,
                deposit_jitter_seconds=self._options.jitter_seconds,
                deposit_seconds=2 * ROUND_SECONDS,
                **redis,
                capture=capture and capture / f"{name}.jsonl",
            )
        say("preparing the members' databases")
        keys = self._state / "api-keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        self._run(
            [
                (
                    f"{name} api-key",
                    [
                        *(AGENT, "api-key", "make", "underwriting", "--replace"),
                        *("--role", "underwriter", "--role", "data_operator"),
                        *("--state", str(self._member(name)), "--file", str(keys / name)),
                    ],
                )
                for name in self._ids
            ]
        )
        return {name: (keys / name).read_text(encoding="ascii").strip() for name in self._ids}

    def _embedded(self) -> str:
        """Start the embedded PostgreSQL and return its connection string."""
        say("starting PostgreSQL")
        directory = self._state / "postgres"
        (directory / "dsn").unlink(missing_ok=True)
        self.processes.start("postgres", AGENT, "postgres", "--state", str(directory))
        deadline = time.monotonic() + START_SECONDS
        while not (directory / "dsn").exists():
            self._still_starting(deadline, "PostgreSQL")
        return (directory / "dsn").read_text(encoding="utf-8").strip()

    # --- start, import, visibility

    def _still_starting(self, deadline: float, what: str) -> None:
        self.processes.check()
        if time.monotonic() > deadline:
            raise ProcessFailedError(f"{what} is not ready after {START_SECONDS} s; see {self._state / 'logs'}")
        time.sleep(0.1)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        waiting = {"service": self._service_url} | self._urls
        while waiting:
            waiting = {name: url for name, url in waiting.items() if self._get(f"{url}/readyz") is None}
            if waiting:
                self._still_starting(deadline, ", ".join(sorted(waiting)[:3]))

    def _import(self) -> None:
        say("importing policies")
        commands = []
        for name in self._ids:
            file = str(self._options.policies.resolve() / f"{name}.csv")
            commands.append((f"{name} import", [AGENT, "import", "--state", str(self._member(name)), file]))
        for done, line in enumerate(run_all(commands, at_once=_AT_ONCE, logs=self._logs, good=(0, 3)), start=1):
            say(f"  {done}/{len(commands)} {line}")
        say(f"rejected rows, each with its reason: {self._logs}/insurer-*-import.log")

    def _wait_until_visible(self, keys: dict[str, str], tick_seconds: int) -> None:
        """Wait until no agent has a deposit on its way, then until checks are as of that moment."""
        deadline, shown = time.monotonic() + DEPOSIT_SECONDS, None
        while True:
            self.processes.check()
            statuses = [self._get(f"{self._urls[name]}/v1/status", keys[name]) for name in self._ids]
            left = sum(item["deposits_unmade"] + item["deposits_incomplete"] for item in statuses if item)
            if left == 0 and None not in statuses:
                break
            if left != shown:
                say(f"{left} deposits on their way")
                shown = left
            if time.monotonic() > deadline:
                raise ProcessFailedError(f"{left} deposits are not made; see {self._state / 'logs'}")
            time.sleep(0.5)
        done = tick_at(time.time(), tick_seconds)
        while as_of_tick(time.time(), tick_seconds) < done:
            time.sleep(0.05)

    def _write_local(self, keys: dict[str, str], pids: dict[str, int]) -> None:
        members = [
            {
                "id": name,
                "url": self._urls[name],
                "api_key": keys[name],
                "pid": pids[name],
                "state": str(self._member(name)),
            }
            for name in self._ids
        ]
        ca_file = None if self._options.plain_http else str(self._state / "ca" / CA_FILE)
        content = {"service_url": self._service_url, "ca_file": ca_file, "members": members}
        write_private(self._state / "local.json", (json.dumps(content, indent=1) + "\n").encode())

    def _get(self, url: str, key: str = "") -> dict[str, Any] | None:
        """Return the JSON at a URL, or None while there is no good answer."""
        if self._context is None and not self._options.plain_http:
            self._context = ssl.create_default_context(cafile=str(self._state / "ca" / CA_FILE))
        request = Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310  our own loopback
        try:
            with urlopen(request, timeout=5, context=self._context) as response:  # noqa: S310  as above
                data: dict[str, Any] = json.load(response)
                return data
        except (URLError, OSError, ValueError):
            return None


def create_databases(server: str, names: list[str]) -> None:
    """Create those databases that the server does not have."""
    try:
        with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
            have = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in names:
                if name not in have:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise SettingsError(f"the database server cannot be used: {error}") from None


def _database(member: str) -> str:
    return member.replace("-", "_")


def _write_settings(directory: Path, **values: Any) -> None:  # noqa: ANN401  TOML values
    lines = [
        f"{name} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
        for name, value in values.items()
        if value is not None
    ]
    write_private(directory / "config.toml", ("\n".join(lines) + "\n").encode())


def _json(file: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _ports(base: int | None, count: int) -> list[int]:
    """Return ports on loopback that are free now: from `base` on, or any."""
    with ExitStack() as stack:
        ports = []
        for offset in range(count):
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", 0 if base is None else base + offset))
            except OSError:
                raise SettingsError(f"port {0 if base is None else base + offset} is taken; see --port-base") from None
            ports.append(int(probe.getsockname()[1]))
        return ports
