"""Proposals: the next manifest on its way to M signatures, in a folder that all of the service's workers share.

The service verifies all that it can, so that what would be published in vain is refused early, and is trusted with
nothing: whoever signs computes what is signed from the bytes, and agents verify the signatures themselves.

A proposal is two files: its terms, which never change, and a record of the rest. Changes are made by one process at a
time and each is whole or not at all, durably. Whether a proposal has been published stands in `Published` alone.
"""

import fcntl
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import (
    AdminPins,
    AdminSignature,
    Manifest,
    SignedManifest,
    Terms,
    verify_signature,
)
from service.api_keys import Action
from service.audit import Act, AuditLog
from service.published import Published
from transport.problems import Problem, fault
from transport.settings import sync_folder, write_private

log = logging.getLogger(__name__)

MAX_TERMS = 2 << 20
MAX_COMMENT = 500
MAX_OPEN = 20
MAX_KEPT = 100
"""Of those that are not open any more, and were not published; the oldest are forgotten. What was published stays."""
OPEN_SECONDS = 14 * 86_400
CLOCK_SECONDS = 300
"""How far ahead of this clock an admin's may be."""
ALONE_SECONDS = 5.0
ID_DIGITS = 16
_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


class State(StrEnum):
    """What has become of a proposal."""

    OPEN = "open"
    PUBLISHED = "published"
    STALE = "stale"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Proposal:
    """The record of a proposal. `hash` is of its terms, `base` of those that it changes; times are Unix seconds."""

    id: str
    hash: bytes
    serial: int
    base: bytes
    comment: str
    proposed_by: str
    proposed_at: int
    expires_at: int
    signatures: dict[str, bytes]
    published_by: str | None = None
    withdrawn_by: str | None = None


def id_of(terms: bytes) -> str:
    """Return the id of a proposal of these encoded terms."""
    return hashlib.sha256(terms).hexdigest()[:ID_DIGITS]


def is_id(text: str) -> bool:
    """Tell whether a text has the form of a proposal's id."""
    return _ID.fullmatch(text) is not None


class Proposals:
    """Takes proposals and signatures and has what M admins signed published. `by` is the name of an API key.

    What is to be written stands in the audit log before it is; refused (`audit-unwritable`) where it cannot.
    """

    def __init__(self, folder: Path, published: Published, pins: AdminPins, audit: AuditLog) -> None:
        self._folder = folder
        self._published = published
        self._pins = pins
        self._audit = audit
        self._known: dict[str, tuple[object, Proposal | None]] = {}
        self._told: set[str] = set()
        folder.mkdir(mode=0o700, exist_ok=True)

    # --- what there is

    def all(self) -> list[Proposal]:
        """Return all proposals whose records can be read, newest first."""
        found = []
        for proposal_id in self._ids(".json"):
            try:
                proposal = self._read(proposal_id)
            except Problem:  # which the log says, and whoever asks for it
                continue
            if proposal is not None:
                found.append(proposal)
        return sorted(found, key=lambda one: (one.proposed_at, one.serial, one.id), reverse=True)

    def get(self, proposal_id: str) -> Proposal:
        """Return a proposal; refuse what is none (`unknown-proposal`) or cannot be read (`proposal-unreadable`)."""
        found = self._read(proposal_id) if is_id(proposal_id) else None
        if found is None:
            hint = "GET /v1/admin/proposals lists them; old ones that came to nothing are forgotten"
            raise Problem(404, "unknown-proposal", "there is no proposal of this id", hint=hint)
        return found

    def terms(self, proposal: Proposal) -> bytes:
        """Return a proposal's encoded terms, which are what is signed."""
        try:
            data = self._terms_file(proposal.id).read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).digest() != proposal.hash:
            raise Problem(
                500, "proposal-damaged", "the proposal's file is damaged", hint="withdraw it and make another"
            )
        return data

    def state(self, proposal: Proposal, now: float) -> State:
        """Tell what has become of a proposal. One that is stale has been overtaken by another manifest."""
        newest = self._published.newest()[1]
        if self._published.known(proposal.hash) is not None:
            return State.PUBLISHED
        if proposal.withdrawn_by is not None:
            return State.WITHDRAWN
        if newest.hash != proposal.base:
            return State.STALE
        return State.EXPIRED if now >= proposal.expires_at else State.OPEN

    # --- what is done

    def propose(self, data: bytes, comment: str, by: str, now: float) -> Proposal:
        """Take encoded terms that are to follow the newest manifest. Proposing again what is open changes nothing.

        Refuses what is not consistent or cannot follow (codes of `Manifest.of` and
        `Published.require_next`), `stale-proposal`, `proposal-expired`, `conflicting-proposal`,
        `too-many-proposals`, and a proposal that is there and cannot be read (`proposal-unreadable`).
        """
        manifest = _consistent(data)
        terms = manifest.terms
        with self._alone():
            newest = self._published.newest()[1]
            known = self._read(id_of(data))
            if known is not None:
                return self._again(known, data, now)
            _require_timely(newest, terms, now)
            self._published.require_next(manifest)
            states = [(one, self.state(one, now)) for one in self.all()]
            if sum(state is State.OPEN for _, state in states) >= MAX_OPEN:
                hint = "publish or withdraw some of them first"
                raise Problem(409, "too-many-proposals", f"{MAX_OPEN} proposals are open", hint=hint)
            self._forget([one for one, state in states if state not in {State.OPEN, State.PUBLISHED}][MAX_KEPT:])
            proposal = Proposal(
                id=id_of(data),
                hash=hashlib.sha256(data).digest(),
                serial=terms.serial,
                base=newest.hash,
                comment=comment,
                proposed_by=by,
                proposed_at=int(now),
                expires_at=min(int(now) + OPEN_SECONDS, terms.valid_until),
                signatures={},
            )
            self._audit.write(Act(int(now), by, Action.PROPOSE, proposal.id))
            write_private(self._terms_file(proposal.id), data)
            self._write(proposal)
            return proposal

    def sign(self, proposal_id: str, admin: str, signature: bytes, by: str, now: float) -> Proposal:
        """Add an admin's signature to an open proposal. Adding it again changes nothing.

        Refuses `unknown-admin`, `bad-signature`, and `already-signed` where the same key has signed under another name.
        """
        with self._alone():
            proposal = self.get(proposal_id)
            self._require_open(proposal, now)
            key = self._pins.keys.get(admin)
            if key is None:
                hint = "GET /v1/admin/overview lists the admins"
                raise Problem(422, "unknown-admin", "the service pins no admin of this name", hint=hint)
            try:
                verify_signature(key, signature, self.terms(proposal))
            except ProtocolError:
                hint = "sign these terms with the key that is pinned under this name"
                raise Problem(
                    422, "bad-signature", "the signature is not this admin's of these terms", hint=hint
                ) from None
            if any(name != admin and self._pins.keys.get(name) == key for name in proposal.signatures):
                hint = "another admin must sign, with another key"
                raise Problem(409, "already-signed", "this key has signed under another name", hint=hint)
            signed = replace(proposal, signatures=proposal.signatures | {admin: signature})
            if signed != proposal:
                self._audit.write(Act(int(now), by, Action.SIGN, proposal_id, admin))
                self._write(signed)
            return signed

    def publish(self, proposal_id: str, by: str, now: float) -> Manifest:
        """Have a proposal that M admins signed become the newest manifest. Publishing it again changes nothing.

        Refuses what is not open, `under-signed`, and what `Published.publish` refuses.
        """
        with self._alone():
            proposal = self.get(proposal_id)
            data = self.terms(proposal)
            if self.state(proposal, now) is State.PUBLISHED:
                return Manifest.of(decode(Terms, data))
            self._require_open(proposal, now)
            good = [name for name in sorted(proposal.signatures) if self._is_good(proposal, name, data)]
            if len({self._pins.keys[name] for name in good}) < self._pins.threshold:
                detail = f"{len(good)} of the {self._pins.threshold} signatures that are needed are there"
                raise Problem(409, "under-signed", detail, hint="have more admins approve it: alliance approve")
            self._audit.write(Act(int(now), by, Action.PUBLISH, proposal_id))
            entries = tuple(AdminSignature(admin=name, signature=proposal.signatures[name]) for name in good)
            try:
                manifest = self._published.publish(encode(SignedManifest(terms=data, signatures=entries)), now)
            except ProtocolError as error:
                if error.code in {"manifest-older", "manifest-forked"}:  # one was put in place at this moment
                    raise _stale() from None
                raise
            self._write(replace(proposal, published_by=by))
            return manifest

    def withdraw(self, proposal_id: str, by: str, now: float) -> Proposal:
        """Take an open proposal back. Its signatures stay good for whoever has a copy, until its serial is taken."""
        with self._alone():
            proposal = self.get(proposal_id)
            if self.state(proposal, now) is State.WITHDRAWN:
                return proposal
            self._require_open(proposal, now)
            withdrawn = replace(proposal, withdrawn_by=by)
            self._audit.write(Act(int(now), by, Action.WITHDRAW, proposal_id))
            self._write(withdrawn)
            return withdrawn

    # --- refusals

    def _again(self, known: Proposal, data: bytes, now: float) -> Proposal:
        if self.terms(known) != data:  # of 64 bits alike, someone has made them so
            hint = "change anything in it, such as its time"
            raise Problem(409, "conflicting-proposal", "another proposal has this id", hint=hint)
        self._require_open(known, now)
        return known

    def _require_open(self, proposal: Proposal, now: float) -> None:
        """Refuse to act on a proposal that is not open, and say why."""
        match self.state(proposal, now):
            case State.PUBLISHED:
                hint = "propose another change; what is published is not taken back"
                raise Problem(409, "already-published", "the proposal has been published", hint=hint)
            case State.WITHDRAWN:
                hint = "propose it anew"
                raise Problem(409, "proposal-withdrawn", "the proposal has been withdrawn", hint=hint)
            case State.STALE:
                raise self._overtaken(proposal)
            case State.EXPIRED:
                raise _expired()

    def _overtaken(self, proposal: Proposal) -> Problem:
        newest = self._published.newest()[1].terms
        known = {(rule.id, rule.version): rule for rule in newest.rules}
        rules = decode(Terms, self.terms(proposal)).rules
        other = [rule for rule in rules if known.get((rule.id, rule.version), rule) != rule]
        if not other:
            return _stale()
        detail = f"another manifest has given {other[0].id} version {other[0].version} another content"
        hint = "look at what has been published; propose again, with a higher version"
        return Problem(409, "conflicting-proposal", detail, hint=hint)

    def _is_good(self, proposal: Proposal, admin: str, data: bytes) -> bool:
        """Tell whether a signature in the record is good: pins and files may be others than when it was taken."""
        key = self._pins.keys.get(admin)
        if key is None:
            return False
        try:
            verify_signature(key, proposal.signatures[admin], data)
        except ProtocolError:
            return False
        return True

    # --- files

    def _terms_file(self, proposal_id: str) -> Path:
        return self._folder / f"{proposal_id}.terms"

    def _write(self, proposal: Proposal) -> None:
        record = asdict(proposal) | {
            "hash": proposal.hash.hex(),
            "base": proposal.base.hex(),
            "signatures": {name: signature.hex() for name, signature in proposal.signatures.items()},
        }
        write_private(self._folder / f"{proposal.id}.json", (json.dumps(record, indent=1) + "\n").encode())

    def _ids(self, ending: str) -> list[str]:
        """Return the ids of which there is a file with this ending."""
        try:
            names = [file.name for file in self._folder.iterdir()]
        except FileNotFoundError:  # it may have been cleared away since the start
            return []
        except OSError as error:
            log.error("the proposals cannot be read: %s", error.strerror)  # noqa: TRY400  no fault of ours
            raise _unreadable() from None
        return [name[:ID_DIGITS] for name in names if is_id(name[:ID_DIGITS]) and name[ID_DIGITS:] == ending]

    def _read(self, proposal_id: str) -> Proposal | None:
        """Return a record, read anew where its file is another than the last time; None if there is none.

        Refuses (`proposal-unreadable`) one that is there and cannot be read, or says what this version does not know.
        """
        file = self._folder / f"{proposal_id}.json"
        try:
            status = file.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._known.get(proposal_id)
            if known is None or known[0] != version:
                known = (version, _parsed(file.read_bytes(), proposal_id))
                self._known[proposal_id] = known
        except FileNotFoundError:
            self._known.pop(proposal_id, None)
            return None
        except OSError as error:
            self._known.pop(proposal_id, None)
            if proposal_id not in self._told:
                self._told.add(proposal_id)
                told = "the record of proposal %s cannot be read, and stays as it is: %s"
                log.error(told, proposal_id, error.strerror)  # noqa: TRY400  no fault of ours
            raise _unreadable() from None
        self._told.discard(proposal_id)
        if known[1] is None:
            raise _unreadable()
        return known[1]

    def _forget(self, old: list[Proposal]) -> None:
        """Remove the files of these, and what a process that was killed had begun; nothing that cannot be read.

        A record goes first: terms without one are of no proposal.
        """
        begun = [f"{one}{ending}" for ending in (".json.new", ".terms.new") for one in self._ids(ending)]
        gone = [f"{one.id}.json" for one in old]
        for name in (*begun, *gone):
            (self._folder / name).unlink(missing_ok=True)
        sync_folder(self._folder)
        for proposal_id in self._ids(".terms"):
            if self._has_no_record(proposal_id):
                self._terms_file(proposal_id).unlink(missing_ok=True)
                self._known.pop(proposal_id, None)

    def _has_no_record(self, proposal_id: str) -> bool:
        """Tell whether there is certainly no record of a proposal."""
        try:
            (self._folder / f"{proposal_id}.json").lstat()
        except FileNotFoundError:
            return True
        except OSError:
            pass
        return False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have this thread be the only one, of all processes, that changes proposals, and know the newest manifest.

        Refuses (`busy`) where that takes longer than a request should hold a thread.
        """
        deadline = time.monotonic() + ALONE_SECONDS
        self._folder.mkdir(mode=0o700, exist_ok=True)  # it may have been cleared away since the start
        with (self._folder / ".lock").open("ab") as lock:  # a description of its own, which excludes threads, too
            while not _locked(lock):
                if time.monotonic() > deadline:
                    raise Problem(503, "busy", "another change takes long", hint="try again shortly", retry_after=1)
                time.sleep(0.01)
            self._published.look_again()
            yield


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _consistent(data: bytes) -> Manifest:
    if len(data) > MAX_TERMS:
        raise Problem(413, "request-entity-too-large", f"terms have {MAX_TERMS >> 20} MiB at most", hint="send less")
    return Manifest.of(decode(Terms, data))


def _require_timely(newest: Manifest, terms: Terms, now: float) -> None:
    """Refuse terms that are not of the next serial, or whose time is not now."""
    if terms.serial <= newest.terms.serial:
        raise _stale()
    if terms.serial != newest.terms.serial + 1:
        hint = f"the newest manifest has serial {newest.terms.serial}, and the next has one more"
        raise Problem(422, "serial-skipped", "the proposal's serial is not the next", hint=hint)
    if terms.issued_at > now + CLOCK_SECONDS:
        raise Problem(
            422, "issued-ahead", "the proposal was issued in the future", hint="set the clocks of both machines"
        )
    if now >= terms.valid_until or now >= terms.issued_at + OPEN_SECONDS:
        raise _expired()


def _stale() -> Problem:
    hint = "propose it anew over the newest manifest: alliance propose"
    return Problem(409, "stale-proposal", "another manifest has been published since it was made", hint=hint)


def _expired() -> Problem:
    hint = "propose it anew: alliance propose"
    return Problem(409, "proposal-expired", "the proposal's time is over", hint=hint)


def _unreadable() -> Problem:
    hint = "it stays as it is; the operator sees the log, and restores it from a backup or runs the newer version"
    return Problem(500, "proposal-unreadable", "the proposal's record cannot be read", hint=hint)


def _parsed(data: bytes, proposal_id: str) -> Proposal | None:
    try:
        record: dict[str, Any] = json.loads(data)
        proposal = Proposal(
            **record
            | {
                "hash": bytes.fromhex(record["hash"]),
                "base": bytes.fromhex(record["base"]),
                "signatures": {name: bytes.fromhex(text) for name, text in record["signatures"].items()},
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.error("the record of proposal %s is damaged or of a newer version: %s", proposal_id, fault(error))  # noqa: TRY400  no fault of ours
        return None
    if not proposal.id == proposal_id == proposal.hash.hex()[:ID_DIGITS]:
        log.error("the record of proposal %s is of another", proposal_id)
        return None
    return proposal
