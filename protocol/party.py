"""A member as the protocol sees it: its keys, the manifest it acts on, and its channels to the others."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from protocol import channel, group, signing
from protocol.channel import Channel
from protocol.errors import ProtocolError
from protocol.group import Scalar
from protocol.identity import salt_check
from protocol.manifest import Manifest, Member
from protocol.secret import Secret


class RandomBytes(Protocol):
    """The source of randomness that the edges hand in: `secrets.token_bytes` outside tests."""

    def __call__(self, count: int, /) -> bytes:
        """Return that many uniform bytes, never the same twice."""


def random_scalar(random: RandomBytes) -> Scalar:
    """Return a uniform scalar other than zero."""
    return group.scalar(group.scalar_from_uniform(random(group.UNIFORM_BYTES)))


@dataclass(frozen=True)
class MemberKeys:
    """A member's own secrets; it makes them itself and they never leave it, but for the salt, shared by all members."""

    signing: Secret
    sealing: Secret
    index: Secret
    salt: Secret

    @classmethod
    def generate(cls, salt: Secret, random: RandomBytes) -> "MemberKeys":
        """Make fresh keys: Ed25519 and X25519 private keys of 32 bytes, and the scalar kj of the index."""
        return cls(Secret(random(32)), Secret(random(32)), Secret(random_scalar(random)), salt)

    def public(self, member_id: str, owner: str, url: str) -> Member:
        """Return what the manifest says of this member."""
        return Member(
            id=member_id,
            group=owner,
            url=url,
            signing_key=signing.public_key(self.signing),
            sealing_key=channel.sealing_public_key(self.sealing),
        )


@dataclass(frozen=True)
class Party:
    """A member acting under a manifest; refuses one that does not list it with its own keys."""

    id: str
    keys: MemberKeys = field(repr=False)
    manifest: Manifest = field(repr=False)
    _channels: dict[str, Channel] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        entry = self.manifest.member(self.id)
        if self.keys.public(self.id, entry.group, entry.url) != entry:
            raise ProtocolError("other-keys", "the manifest lists other public keys for this member")
        if salt_check(self.keys.salt) != self.manifest.terms.salt_check:
            raise ProtocolError("other-salt", "the key file holds another salt than the alliance's; ask who made it")

    @cached_property
    def group(self) -> str:
        """The ownership group."""
        return self.manifest.member(self.id).group

    def channel(self, peer_id: str) -> Channel:
        """Return the channel to another member."""
        if peer_id not in self._channels:
            peer = self.manifest.member(peer_id)
            self._channels[peer_id] = Channel(self.id, self.keys.sealing, peer_id, peer.sealing_key)
        return self._channels[peer_id]


@dataclass(frozen=True)
class ServiceKeys:
    """The lookup service's own secrets: ks and the key that signs its calls to custodians."""

    blinding: Secret
    signing: Secret


@dataclass(frozen=True)
class ServiceParty:
    """The service acting under a manifest; refuses one that lists other keys."""

    keys: ServiceKeys = field(repr=False)
    manifest: Manifest = field(repr=False)

    def __post_init__(self) -> None:
        public = group.multiply_base(Scalar(self.keys.blinding.reveal()))
        if public != self.manifest.blinding_key:
            raise ProtocolError("other-keys", "the manifest lists another blinding key than the service holds")
        if signing.public_key(self.keys.signing) != self.manifest.terms.service_signing_key:
            raise ProtocolError("other-keys", "the manifest lists another signing key than the service holds")
