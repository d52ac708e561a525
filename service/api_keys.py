"""API keys of the alliance's admins and auditors at the service: a role, a scope, and an end.

They stand in a file of the state directory, as hashes. A key opens the service's REST interface and signs nothing: what
the alliance agrees on is signed with the admins' own keys, which the service does not have.
"""

import datetime as dt
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from protocol.party import RandomBytes
from service.file_lock import locked
from transport.problems import Problem
from transport.settings import SettingsError, refuse_readable_by_others, write_private

PREFIX = "cover_service_"
MAX_DAYS = 366
MAX_KEYS = 1000
MAX_NAME = 64
_FILE, _LOCK = "api-keys.json", ".api-keys.lock"


class Role(StrEnum):
    """What a key's holder is."""

    ADMIN = "admin"
    AUDITOR = "auditor"


class Action(StrEnum):
    """What an endpoint is asked to do."""

    READ = "read"
    PROPOSE = "propose"
    SIGN = "sign"
    PUBLISH = "publish"
    WITHDRAW = "withdraw"


ACTIONS = {Role.ADMIN: frozenset(Action), Role.AUDITOR: frozenset({Action.READ})}
"""The most that a key of a role may do; a key's scope may be less."""


@dataclass(frozen=True)
class Holder:
    """Whose a key is. Times are Unix seconds."""

    name: str
    role: Role
    scope: frozenset[Action]
    made_at: int
    expires_at: int


class ApiKeys:
    """Makes, lists and revokes keys, and finds out whose a presented key is. All of the service's workers share them.

    A key has 256 random bits, so that a plain hash is enough: there is nothing to guess.
    """

    def __init__(self, state: Path, clock: Callable[[], float]) -> None:
        """`clock` gives Unix seconds. Raises `SettingsError` where there is a file that cannot be used."""
        self._file = state / _FILE
        self._clock = clock
        self._known_lock = threading.Lock()
        self._version: object = None
        self._known: dict[str, Holder] = {}
        self._read()

    def make(self, name: str, role: Role, days: int, random: RandomBytes, scope: Iterable[Action] = ()) -> str:
        """Return a new key; its scope is all that its role may do unless given.

        Refuses (`SettingsError`) a name that has a key that has not expired, and what is out of bounds.
        """
        if not (0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()):
            raise SettingsError(f"a key's name has 1 to {MAX_NAME} characters that print")
        if not 1 <= days <= MAX_DAYS:
            raise SettingsError(f"a key is good for 1 to {MAX_DAYS} days")
        chosen = frozenset(scope) or ACTIONS[role]
        if not chosen <= ACTIONS[role]:
            raise SettingsError(f"a key of the role {role} may {', '.join(sorted(ACTIONS[role]))}, and no more")
        key, now = PREFIX + random(32).hex(), int(self._clock())
        with self._changing() as known:
            if any(one.name == name and one.expires_at > now for one in known.values()):
                raise SettingsError(f"there is an API key named {name}; revoke it, or take another name")
            for digest in [digest for digest, one in known.items() if one.name == name]:
                del known[digest]
            if len(known) >= MAX_KEYS:
                raise SettingsError(f"there are {MAX_KEYS} keys; revoke those that are not used")
            known[_hash(key)] = Holder(name, role, chosen, now, now + days * 86_400)
        return key

    def entries(self) -> list[Holder]:
        """Return the holders of all keys, expired or not, by name."""
        return sorted(self._read().values(), key=lambda one: one.name)

    def revoke(self, name: str) -> None:
        """End a key, from the next request on; refuse (`SettingsError`) a name that has none."""
        with self._changing() as known:
            digests = [digest for digest, one in known.items() if one.name == name]
            if not digests:
                raise SettingsError(f"there is no API key named {name}")
            for digest in digests:
                del known[digest]

    def holder(self, key: str) -> Holder:
        """Return whose a key is; refuse (`unauthorized`, `api-key-expired`) one that is unknown or has ended.

        Where the file cannot be read nobody is let in (`api-keys-unreadable`).
        """
        try:
            found = self._read().get(_hash(key))
        except SettingsError:
            detail = "the API keys cannot be read"
            raise Problem(503, "api-keys-unreadable", detail, hint="the operator mends api-keys.json") from None
        if found is None:
            hint = "it may have been revoked; the operator makes another by lookup-service api-key make"
            raise Problem(401, "unauthorized", "the API key is not known here", hint=hint)
        if found.expires_at <= self._clock():
            hint = "the operator makes another by lookup-service api-key make"
            raise Problem(401, "api-key-expired", "the API key has expired", hint=hint)
        return found

    # --- the file

    def _read(self) -> dict[str, Holder]:
        """Return all holders by their keys' hashes, read anew where the file is another than the last time."""
        with self._known_lock:
            version = _version(self._file)
            if version != self._version:
                self._known = {} if version is None else _parsed(self._file)
                self._version = version
            return self._known

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Holder]]:
        """Yield the keys for one process to change, and write them back whole."""
        with locked(self._file.with_name(_LOCK)):
            known = dict(self._read())
            yield known
            keys = [asdict(one) | {"hash": digest, "scope": sorted(one.scope)} for digest, one in known.items()]
            write_private(self._file, (json.dumps({"keys": keys}, indent=1) + "\n").encode())


def _version(file: Path) -> object:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"the API keys {file} cannot be read: {error.strerror}") from None
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def _parsed(file: Path) -> dict[str, Holder]:
    try:
        refuse_readable_by_others(file)
        entries = json.loads(file.read_bytes())["keys"]
        return {str(entry["hash"]): _holder(entry) for entry in entries}
    except OSError as error:
        raise SettingsError(f"the API keys {file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SettingsError(f"the API keys {file} are damaged; restore them, or remove the file and make new") from None


def _holder(entry: dict[str, Any]) -> Holder:
    role = Role(entry["role"])
    scope = frozenset(map(Action, entry["scope"])) & ACTIONS[role]
    return Holder(str(entry["name"]), role, scope, int(entry["made_at"]), int(entry["expires_at"]))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def day_time(seconds: int) -> str:
    """Return Unix seconds as a command shows them."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%MZ}"
