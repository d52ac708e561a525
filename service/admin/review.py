"""What an admin sees before signing, worked out here from the bytes: the service may have said anything.

1. The terms are decoded, checked for consistency and hashed; what is shown and signed are these very bytes.
2. What they change is a manifest that M admins signed, by the keys that this admin pins.
3. They may follow it, and next: their serial is one more, and they name it by its hash. So if the service showed an
   older manifest than the newest, or one that was signed and never published, no agent would take these terms.
   They were not issued in the future.
4. The difference is computed from both.
5. Of the signatures those count that verify.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from protocol.encoding import decode
from protocol.errors import ProtocolError
from protocol.manifest import (
    AdminPins,
    Manifest,
    Terms,
    require_same_connections,
    require_succession,
    verify_manifest,
    verify_signature,
)
from service.admin.differences import Change, difference
from service.admin.remote import Remote
from service.proposals import id_of, is_id
from transport.problems import Problem

BOGUS = "bogus-answer"
_TEXTS = ("id", "state", "proposed_at", "proposed_by", "comment")


@dataclass(frozen=True)
class Review:
    """A proposal as it was verified here. `state`, `comment` and `proposed_by` are the service's word alone."""

    id: str
    data: bytes
    terms: Terms
    base: Manifest
    changes: list[Change]
    signed_by: list[str]
    signatures_wanted: int
    state: str
    comment: str
    proposed_by: str

    @property
    def hash(self) -> str:
        """The SHA-256 of the terms, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def newest(remote: Remote, pins: AdminPins) -> Manifest:
    """Return the newest manifest that the service shows, verified by the pins; it may have expired."""
    return verify_manifest(_bytes(remote.get("/v1/admin/manifest"), "signed"), pins)


def review(remote: Remote, proposal_id: str, pins: AdminPins, now: float) -> Review:
    """Fetch a proposal and verify it; refuse (`bogus-answer`, and codes of the manifest) what does not hold.

    `now` is the admin's own clock, Unix seconds.
    """
    if not is_id(proposal_id):
        raise Problem(404, "unknown-proposal", "a proposal's id has 16 hexadecimal digits")
    answer = remote.get(f"/v1/admin/proposals/{proposal_id}")
    # 1.
    data = _bytes(answer, "terms")
    if id_of(data) != proposal_id:
        raise Problem(502, BOGUS, "the service gave the terms of another proposal: DO NOT SIGN, tell the other admins")
    terms = decode(Terms, data)
    proposed = Manifest.of(terms)
    # 2.
    base = verify_manifest(_bytes(answer, "base_signed"), pins)
    # 3.
    if terms.serial != base.terms.serial + 1:
        raise Problem(502, BOGUS, "the proposal is not next to the manifest that the service says it changes")
    if terms.previous != base.hash:
        detail = "the proposal follows another manifest than the service shows: DO NOT SIGN, tell the other admins"
        raise Problem(502, BOGUS, detail)
    proposed.require_issued(now)
    require_succession(base.terms, terms)
    require_same_connections(base.terms, terms)
    return Review(
        id=proposal_id,
        data=data,
        terms=terms,
        base=base,
        changes=difference(base.terms, terms),  # 4.
        signed_by=_signers(answer, data, pins),  # 5.
        signatures_wanted=pins.threshold,
        state=_text(answer, "state"),
        comment=_text(answer, "comment"),
        proposed_by=_text(answer, "proposed_by"),
    )


def listed(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a list of proposals; refuse (`bogus-answer`) a list that is not one."""
    entries = answer.get("proposals")
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise Problem(502, BOGUS, "the service's answer has no good list of proposals")
    return entries


def _is_entry(one: object) -> bool:
    if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in _TEXTS):
        return False
    return isinstance(one.get("signed_by"), list) and isinstance(one.get("serial"), int)


def _signers(answer: dict[str, Any], data: bytes, pins: AdminPins) -> list[str]:
    """Return the names of those whose signatures verify, one for each key: keys count, not names."""
    entries = answer.get("signatures")
    good: dict[bytes, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        try:
            name = entry["admin"]
            key = pins.keys[name]
            verify_signature(key, bytes.fromhex(entry["signature"]), data)
        except (KeyError, TypeError, ValueError, ProtocolError):
            continue
        good[key] = min(name, good.get(key, name))
    return sorted(good.values())


def _bytes(answer: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(answer[name], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise Problem(502, BOGUS, f"the service's answer has no good {name}") from None


def _text(answer: dict[str, Any], name: str) -> str:
    return str(answer.get(name) or "")
