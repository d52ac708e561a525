"""The manifests that an agent has taken, in its database: the newest is that of all its processes.

None is taken that the alliance's admins have not signed, that is older than the newest or a fork, or that cannot follow
it. What is read is verified again by the keys that this process pins.
"""

import hashlib
from collections.abc import Callable

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.locks import Lock
from protocol import kdf
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import (
    AdminPins,
    Manifest,
    SignedManifest,
    Terms,
    hash_of,
    require_same_connections,
    require_succession,
    verify_manifest,
)

Fits = Callable[[Manifest], None]
"""Refuses a manifest that is not for this agent, before it is remembered."""


class Manifests:
    """See the module. A manifest that is refused raises `ProtocolError` and changes nothing."""

    def __init__(self, database: Database, pins: AdminPins, fits: Fits) -> None:
        self._database = database
        self._pins = pins
        self._fits = fits

    def load(self, data: bytes, now: float) -> Manifest:
        """Return the manifest to begin with: the newest known, or one from a file, `data`, that is newer.

        A file that was taken before may be older: newer ones have been published since. The newest known may have
        expired, one that is new may not, nor be from the future.
        """
        manifest = verify_manifest(data, self._pins)

        def transaction(connection: Rows) -> Manifest:
            _lock(connection)
            serial, newest_hash = _newest_place(connection)
            if manifest.terms.serial > serial:
                manifest.require_unexpired(now)
                manifest.require_issued(now)
                self._take(connection, manifest, data)
                return manifest
            if manifest.terms.serial == serial:
                if manifest.hash != newest_hash:
                    raise ProtocolError("manifest-forked", "another manifest of the same serial has been seen")
                self._keep(connection, manifest, data)  # the same, perhaps signed by others
                return manifest
            known = connection.execute("SELECT FROM manifest WHERE hash = %s AND in_force", (manifest.hash,)).fetchone()
            newest = None if known is None else _signed(connection, newest_hash)
            if newest is None:
                raise ProtocolError("manifest-older", "a newer manifest has been seen; rollback is refused")
            found = verify_manifest(newest, self._pins)
            self._fits(found)
            return found

        return self._database.run("load manifest", transaction)

    def take(self, data: bytes, now: float) -> Manifest:
        """Take a published manifest if it is a newer one than is known; return the newest."""
        manifest = verify_manifest(data, self._pins)

        def transaction(connection: Rows) -> Manifest:
            _lock(connection)
            serial, newest_hash = _newest_place(connection)
            if manifest.hash == newest_hash:
                return manifest
            if manifest.terms.serial == serial:
                raise ProtocolError("manifest-forked", "another manifest of the same serial has been seen")
            if manifest.terms.serial < serial:
                raise ProtocolError("manifest-older", "a newer manifest has been seen; rollback is refused")
            manifest.require_unexpired(now)
            manifest.require_issued(now)
            newest = _signed(connection, newest_hash)
            if newest is not None:
                require_same_connections(_terms(newest), manifest.terms)
            self._take(connection, manifest, data)
            return manifest

        return self._database.run("take manifest", transaction)

    def newest(self) -> Manifest | None:
        """Return the newest manifest that a process of this agent has taken."""
        row = self._database.run(
            "newest manifest",
            lambda connection: connection.execute(
                "SELECT signed FROM manifest WHERE in_force ORDER BY serial DESC LIMIT 1"
            ).fetchone(),
            one_statement=True,
        )
        return None if row is None else verify_manifest(bytes(row[0]), self._pins)

    def by_hash(self, manifest_hash: bytes) -> Manifest | None:
        """Return a manifest that was taken, or kept as an earlier one."""
        row = self._database.run(
            "manifest by hash",
            lambda connection: connection.execute(
                "SELECT signed FROM manifest WHERE hash = %s", (manifest_hash,)
            ).fetchone(),
            one_statement=True,
        )
        return None if row is None else verify_manifest(bytes(row[0]), self._pins)

    def keep_earlier(self, data: bytes, manifest_hash: bytes) -> Manifest:
        """Keep the manifest of a hash, which this agent missed while it was in force; refuse (`other-manifest`) any
        other, a fork, and one that the newest cannot follow, or follows with other keys (`other-connections`).

        Unless the next one, which was in force, names it, that it was is the service's word alone: then it is good for
        deposits, and says nothing of what may come next.
        """
        manifest = verify_manifest(data, self._pins)
        if manifest.hash != manifest_hash:
            raise ProtocolError("other-manifest", "the service gave another manifest than it was asked for")

        def transaction(connection: Rows) -> Manifest:
            _lock(connection)
            _, newest_hash = _newest_place(connection)
            newest = _signed(connection, newest_hash)
            if newest is None:
                raise ProtocolError("other-manifest", "no manifest is known that this one may be earlier than")
            require_succession(manifest.terms, _terms(newest))
            require_same_connections(manifest.terms, _terms(newest))  # keys that were replaced are good for nothing
            is_named = _require_beside(connection, manifest.terms)
            query = "SELECT hash FROM manifest WHERE serial = %s AND in_force"
            row = connection.execute(query, (manifest.terms.serial,)).fetchone()
            if row is not None and bytes(row[0]) != manifest.hash:
                raise ProtocolError("manifest-forked", "another manifest of the same serial has been seen")
            connection.execute(
                "INSERT INTO manifest (hash, serial, signed, in_force) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (manifest.hash, manifest.terms.serial, data, is_named),
            )
            return manifest

        return self._database.run("keep an earlier manifest", transaction)

    def _take(self, connection: Rows, manifest: Manifest, data: bytes) -> None:
        """Make a manifest the newest; refuse one that cannot follow those before it."""
        rows = connection.execute(
            "SELECT signed FROM manifest WHERE serial < %s AND in_force ORDER BY serial", (manifest.terms.serial,)
        ).fetchall()
        before = [_terms(bytes(row[0])) for row in rows]
        if before:
            require_succession(before[-1], manifest.terms, before[:-1])
        self._keep(connection, manifest, data)

    def _keep(self, connection: Rows, manifest: Manifest, data: bytes) -> None:
        self._fits(manifest)
        _require_epoch(connection, manifest)
        connection.execute(
            "INSERT INTO manifest (hash, serial, signed, in_force) VALUES (%s, %s, %s, true)"
            " ON CONFLICT (hash) DO UPDATE SET signed = EXCLUDED.signed, in_force = true",
            (manifest.hash, manifest.terms.serial, data),
        )


def _lock(connection: Rows) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (Lock.MANIFEST,))


def _newest_place(connection: Rows) -> tuple[int, bytes | None]:
    """Return serial and hash of the newest manifest; 0 and None before the first."""
    row = connection.execute("SELECT serial, hash FROM manifest WHERE in_force ORDER BY serial DESC LIMIT 1").fetchone()
    if row is not None:
        return int(row[0]), bytes(row[1])
    # An agent of before there was this table knows serial and hash alone, and its deposits were made under that one.
    row = connection.execute("SELECT value FROM setting WHERE name = 'manifest'").fetchone()
    if row is None:
        return 0, None
    serial, newest_hash = int.from_bytes(row[0][:8], "big"), bytes(row[0][8:])
    connection.execute("UPDATE deposit SET manifest = %s WHERE made IS NOT NULL AND manifest IS NULL", (newest_hash,))
    return serial, newest_hash


def _signed(connection: Rows, manifest_hash: bytes | None) -> bytes | None:
    row = connection.execute("SELECT signed FROM manifest WHERE hash = %s", (manifest_hash,)).fetchone()
    return None if row is None else bytes(row[0])


def _require_beside(connection: Rows, terms: Terms) -> bool:
    """Refuse (`other-previous`) an earlier manifest that is not the one between those known next to its serial; return
    whether the next one is known, which names it.
    """
    is_named = False
    rows = connection.execute(
        "SELECT signed FROM manifest WHERE serial IN (%s, %s) AND in_force", (terms.serial - 1, terms.serial + 1)
    ).fetchall()
    for one in (_terms(bytes(row[0])) for row in rows):
        first, then = (one, terms) if one.serial < terms.serial else (terms, one)
        if then.previous != hash_of(first):
            raise ProtocolError("other-previous", "a manifest of a serial next to it names another")
        is_named |= one is then
    return is_named


def _terms(signed: bytes) -> Terms:
    """Return what a manifest says that was verified when it was taken."""
    return decode(Terms, decode(SignedManifest, signed).terms)


def _require_epoch(connection: Rows, manifest: Manifest) -> None:
    """Bind the database to what its rows are found by: under another epoch, key, salt, committee, ownership or length
    of ticks they would be missed, by all custodians alike, and persons look new.
    """
    terms = manifest.terms
    numbers = terms.epoch.to_bytes(4, "big") + terms.tick_seconds.to_bytes(2, "big")
    owners = (part.encode() for member in terms.members for part in (member.id, member.group))
    committees = (encode(committee) for committee in terms.committees)
    epoch = hashlib.sha256(kdf.join(numbers, terms.blinding_key, terms.salt_check, *committees, *owners)).digest()
    connection.execute("INSERT INTO setting (name, value) VALUES ('epoch', %s) ON CONFLICT DO NOTHING", (epoch,))
    row = connection.execute("SELECT value FROM setting WHERE name = 'epoch'").fetchone()
    if row is None or bytes(row[0]) != epoch:
        raise ProtocolError("other-epoch", "the database is of other keys, committees, owners or ticks; SPEC.md, 7")
