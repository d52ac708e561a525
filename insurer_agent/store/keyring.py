"""Committee keys at rest: sealed, with who has confirmed them."""

from dataclasses import dataclass

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.vault import Vault
from protocol.committee_keys import CommitteeKey
from protocol.errors import ProtocolError
from protocol.secret import Secret


@dataclass(frozen=True)
class HeldKey:
    """A committee key with the members that have confirmed it to us, its maker."""

    key: CommitteeKey
    confirmed_by: frozenset[str]


class Keyring:
    """The key of each (shard, omitted slot) under a version of the committee; the first that came stands."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._cache: dict[tuple[int, int | None, int], CommitteeKey] = {}

    def current(self, shard: int, omitted: int | None, version: int) -> CommitteeKey:
        """Return the key in use; refuse (`not-ready`) while there is none."""
        cached = self._cache.get((shard, omitted, version))
        if cached is None:
            held = self.find(shard, omitted, version)
            if held is None:
                raise ProtocolError("not-ready", "this custodian has no committee key yet; try again shortly")
            cached = self._cache[shard, omitted, version] = held.key
        return cached

    def find(self, shard: int, omitted: int | None, version: int) -> HeldKey | None:
        """Return the key that stands, or None."""
        row = self._database.run(
            "find committee key",
            lambda connection: connection.execute(
                "SELECT made_at, sealed, confirmed_by FROM committee_key"
                " WHERE shard = %s AND omitted = %s AND committee_version = %s",
                (shard, _slot(omitted), version),
            ).fetchone(),
        )
        if row is None:
            return None
        made_at, sealed, confirmed_by = row
        secret = Secret(self._vault.open(_place(shard, omitted, version, made_at), sealed))
        return HeldKey(CommitteeKey.named(shard, omitted, version, made_at, secret), frozenset(confirmed_by))

    def keep(self, key: CommitteeKey) -> CommitteeKey:
        """Store a key unless there is one; return the one that stands, which no maker can replace."""
        name = key.name
        sealed = self._vault.seal(
            _place(name.shard, name.omitted, name.committee_version, name.made_at), key.secret.reveal()
        )

        def transaction(connection: Rows) -> None:
            connection.execute(
                "INSERT INTO committee_key (shard, omitted, committee_version, made_at, sealed)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (name.shard, _slot(name.omitted), name.committee_version, name.made_at, sealed),
            )

        self._database.run("keep committee key", transaction)
        held = self.find(name.shard, name.omitted, name.committee_version)
        assert held is not None
        return held.key

    def confirm(self, key: CommitteeKey, holder: str) -> None:
        """Record that a holder has confirmed a key that we made."""
        name = key.name

        def transaction(connection: Rows) -> None:
            connection.execute(
                "UPDATE committee_key SET confirmed_by = array_append(array_remove(confirmed_by, %s::text), %s::text)"
                " WHERE shard = %s AND omitted = %s AND committee_version = %s AND made_at = %s",
                (holder, holder, name.shard, _slot(name.omitted), name.committee_version, name.made_at),
            )

        self._database.run("confirm committee key", transaction)


def _slot(omitted: int | None) -> int:
    return -1 if omitted is None else omitted


def _place(shard: int, omitted: int | None, version: int, made_at: int) -> bytes:
    return f"committee key {shard} {_slot(omitted)} {version} {made_at}".encode()
