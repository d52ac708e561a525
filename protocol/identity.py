"""Canonical identities, and the shard that an identity belongs to (SPEC.md, section 3).

An identity is a document type and the document's *normalised* number. Normalising is the agent's business
(`insurer_agent.intake.documents`); here two identities are one person exactly when they are equal.
"""

import enum
import hmac
from dataclasses import dataclass, field

from protocol.errors import ProtocolError
from protocol.secret import Secret

MAX_NUMBER_BYTES = 64


class DocumentType(enum.Enum):
    """The identity documents that the alliance knows. Values are wire format: never rename one."""

    RESIDENT_ID = "resident_id"
    PASSPORT = "passport"
    HK_MACAU_PERMIT = "hk_macau_permit"
    TAIWAN_PERMIT = "taiwan_permit"
    ORGANIZATION = "organization"


@dataclass(frozen=True)
class Identity:
    """An insured person or organization. The number never appears in a repr."""

    document_type: DocumentType
    number: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            size = len(self.number.encode())
        except UnicodeEncodeError:
            size = 0
        if not 0 < size <= MAX_NUMBER_BYTES:
            raise ProtocolError("identity-length", "a document number has 1 to 64 bytes of Unicode text")

    def encode(self) -> bytes:
        """Encode injectively: each part with its length (one byte) before it."""
        kind, number = self.document_type.value.encode(), self.number.encode()
        return b"".join((bytes([len(kind)]), kind, bytes([len(number)]), number))


def shard_of(salt: Secret, identity: Identity, shards: int) -> int:
    """Return the shard, 0 to `shards` - 1: HMAC-SHA256(salt, "shard" || identity) mod shards."""
    digest = hmac.digest(salt.reveal(), b"shard" + identity.encode(), "sha256")
    return int.from_bytes(digest, "big") % shards


def salt_check(salt: Secret) -> bytes:
    """Return 32 bytes by which members find out that they hold the same alliance salt, without showing it."""
    return hmac.digest(salt.reveal(), b"cover-lookup/v1 alliance salt check", "sha256")
