"""A member's enrolment: its public keys, signed by itself, for the admins to put into the manifest."""

from typing import Any

from protocol import signing
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.identity import salt_check
from protocol.manifest import Member
from protocol.party import MemberKeys

_PURPOSE = "enrolment"


def enrol(keys: MemberKeys, member_id: str, owner: str, url: str) -> dict[str, str]:
    """Return the enrolment as JSON values; `salt_check` lets the admins see that all members hold one salt."""
    member = keys.public(member_id, owner, url)
    check = salt_check(keys.salt)
    return {
        "id": member.id,
        "group": member.group,
        "url": member.url,
        "signing_key": member.signing_key.hex(),
        "sealing_key": member.sealing_key.hex(),
        "salt_check": check.hex(),
        "signature": signing.sign(keys.signing, _PURPOSE, encode(member), check).hex(),
    }


def read_enrolment(data: dict[str, Any]) -> tuple[Member, bytes]:
    """Return the member and its salt check; refuse (`bad-enrolment`) what the member's own key did not sign."""
    try:
        member = Member(
            id=str(data["id"]),
            group=str(data["group"]),
            url=str(data["url"]),
            signing_key=bytes.fromhex(data["signing_key"]),
            sealing_key=bytes.fromhex(data["sealing_key"]),
        )
        check = bytes.fromhex(data["salt_check"])
        signing.verify(member.signing_key, bytes.fromhex(data["signature"]), _PURPOSE, encode(member), check)
    except (KeyError, TypeError, ValueError, RecursionError, ProtocolError):
        raise ProtocolError("bad-enrolment", "an enrolment is damaged or not signed by its own key") from None
    return member, check
