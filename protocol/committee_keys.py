"""Committee keys: what the service must not know and a requester's own group must not have (SPEC.md, section 6.1).

For each shard there is one key of the whole committee and one without each slot. The lowest slot of the set makes
it and seals it to the others; each confirms by a check value. A check or deposit of a group that holds a slot uses the
key without that slot; any other uses the key of the whole.
"""

import hmac
from dataclasses import dataclass, field
from typing import Annotated

from protocol import kdf
from protocol.encoding import HASH, ID, Fixed, Maybe, UInt, decode, encode, message
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.party import Party, RandomBytes
from protocol.secret import Secret

PURPOSE = "committee key"
KEY_BYTES = 32
SLOT = UInt(8)
MADE_AT = UInt(64, most=(1 << 63) - 1)
"""Unix seconds, no more than a database holds."""


@message("committee key name", version=1, kept=True)
class KeyName:
    """Which committee key: the shard's whole committee or without one slot, which making of it, and its id.

    `id` is derived from the key, so custodians that hold different keys put different ids into their headers.
    """

    shard: Annotated[int, UInt(32)]
    omitted: Annotated[int | None, Maybe(SLOT)]
    committee_version: Annotated[int, UInt(32)]
    made_at: Annotated[int, MADE_AT]
    id: Annotated[bytes, ID]


@dataclass(frozen=True)
class CommitteeKey:
    """A committee key with its name."""

    name: KeyName
    secret: Secret = field(repr=False)

    @classmethod
    def named(
        cls, shard: int, omitted: int | None, committee_version: int, made_at: int, secret: Secret
    ) -> "CommitteeKey":
        """Name a key after its place and its own value."""
        key_id = kdf.derive(secret.reveal(), "committee key id", size=16)
        name = KeyName(shard=shard, omitted=omitted, committee_version=committee_version, made_at=made_at, id=key_id)
        return cls(name, secret)

    def check_value(self, holder: str) -> bytes:
        """Return 32 bytes by which a holder confirms to the maker that it has this key."""
        statement = kdf.join(b"confirm", holder.encode(), encode(self.name))
        return hmac.digest(self.secret.reveal(), statement, "sha256")


@message("sealed committee key", version=1)
class KeyEnvelope:
    """The body of an envelope from the maker to a holder."""

    shard: Annotated[int, UInt(32)]
    omitted: Annotated[int | None, Maybe(SLOT)]
    committee_version: Annotated[int, UInt(32)]
    made_at: Annotated[int, MADE_AT]
    secret: Annotated[bytes, Fixed(KEY_BYTES)]
    manifest_hash: Annotated[bytes, HASH]


def key_sets(manifest: Manifest, shard: int) -> list[int | None]:
    """Return the sets that have a key: None for the whole committee, else the slot left out."""
    return [None, *range(len(manifest.committee(shard).slots))]


def holders(manifest: Manifest, shard: int, omitted: int | None) -> list[str]:
    """Return the members of a key's set; the first is its maker."""
    return [member for slot, member in enumerate(manifest.committee(shard).slots) if slot != omitted]


def require_key(manifest: Manifest, key: CommitteeKey, shard: int, omitted: int | None) -> None:
    """Refuse (`other-key`) a key that is not that of the shard, of its committee's version, without that slot."""
    version = manifest.committee(shard).version
    if (key.name.shard, key.name.omitted, key.name.committee_version) != (shard, omitted, version):
        raise ProtocolError("other-key", "the committee key is not the one for this member")


def make(party: Party, shard: int, omitted: int | None, made_at: int, random: RandomBytes) -> CommitteeKey:
    """Make a key of which this party is the maker."""
    if holders(party.manifest, shard, omitted)[0] != party.id:
        raise ProtocolError("not-maker", "the lowest slot of the set makes its key")
    version = party.manifest.committee(shard).version
    return CommitteeKey.named(shard, omitted, version, made_at, Secret(random(KEY_BYTES)))


def seal(party: Party, key: CommitteeKey, holder: str, salt: bytes) -> bytes:
    """Return the envelope that hands a key to another holder."""
    body = KeyEnvelope(
        shard=key.name.shard,
        omitted=key.name.omitted,
        committee_version=key.name.committee_version,
        made_at=key.name.made_at,
        secret=key.secret.reveal(),
        manifest_hash=party.manifest.hash,
    )
    return party.channel(holder).seal(PURPOSE, party.manifest.hash, encode(body), salt)


def receive(party: Party, maker: str, envelope: bytes) -> CommitteeKey:
    """Open an envelope; refuse one from a member that is not the maker of that key, or for a set without us."""
    body = decode(KeyEnvelope, party.channel(maker).open(PURPOSE, party.manifest.hash, envelope))
    members = holders(party.manifest, body.shard, body.omitted)
    if members[0] != maker or party.id not in members or body.omitted not in key_sets(party.manifest, body.shard):
        raise ProtocolError("not-maker", "a committee key comes from the lowest slot of a set that has us")
    if body.committee_version != party.manifest.committee(body.shard).version:
        raise ProtocolError("other-committee", "the key is for another version of the committee")
    return CommitteeKey.named(body.shard, body.omitted, body.committee_version, body.made_at, Secret(body.secret))
