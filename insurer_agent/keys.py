"""The agent's key file: made by the member itself, readable by its owner alone, never in the database."""

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from protocol import group
from protocol.errors import ProtocolError
from protocol.party import MemberKeys
from protocol.secret import Secret
from transport.settings import SettingsError, refuse_readable_by_others, write_private

KEY_FILE = "keys.json"
KEY_BYTES = 32
_NAMES = ("signing", "sealing", "index", "storage", "salt")


@dataclass(frozen=True)
class AgentKeys:
    """The protocol's keys, and the storage key under which the database's contents are sealed."""

    member: MemberKeys = field(repr=False)
    storage: Secret

    @classmethod
    def generate(cls, salt: Secret) -> "AgentKeys":
        """Make fresh keys around the alliance's salt."""
        if len(salt) != KEY_BYTES:
            raise SettingsError(f"the alliance's salt has {KEY_BYTES} bytes")
        return cls(MemberKeys.generate(salt, secrets.token_bytes), Secret(secrets.token_bytes(32)))

    def save(self, state: Path) -> None:
        """Write the key file; refuse to overwrite one, because what it sealed would be lost."""
        file = state / KEY_FILE
        if file.exists():
            raise SettingsError(f"{file} exists; its keys would be lost. Choose another state directory")
        member = self.member
        values = (member.signing, member.sealing, member.index, self.storage, member.salt)
        data = {name: value.reveal().hex() for name, value in zip(_NAMES, values, strict=True)}
        write_private(file, (json.dumps(data, indent=1) + "\n").encode())

    @classmethod
    def load(cls, state: Path) -> "AgentKeys":
        """Read the key file; raise `SettingsError` if it is missing, readable by others or damaged."""
        file = state / KEY_FILE
        try:
            refuse_readable_by_others(file)
            data = json.loads(file.read_bytes())
            values = {name: Secret(bytes.fromhex(data[name])) for name in _NAMES}
            group.scalar(values["index"].reveal())
        except FileNotFoundError:
            raise SettingsError(f"there is no key file {file}; insurer-agent init makes one") from None
        except OSError as error:
            raise SettingsError(f"the key file {file} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, ProtocolError):
            # The file's content must not get into a message, so neither does the error's text.
            raise SettingsError(f"the key file {file} is damaged; restore it from its backup") from None
        if any(len(value) != KEY_BYTES for value in values.values()):
            raise SettingsError(f"the key file {file} is damaged; restore it from its backup")
        member = MemberKeys(values["signing"], values["sealing"], values["index"], values["salt"])
        return cls(member, values["storage"])
