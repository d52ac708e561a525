"""Settings from a TOML file and the environment, checked at start with errors that say what to change."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marshmallow import RAISE, Schema, ValidationError

from protocol.errors import ProtocolError
from protocol.manifest import AdminPins


class SettingsError(Exception):
    """The settings cannot be used; the text says which, and what is expected."""


def load_settings(
    schema: type[Schema], file: Path | None, prefix: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the settings that `schema` accepts.

    The file is TOML; a variable `PREFIX_NAME` in the environment takes the place of the file's `name`. Unknown names
    are errors in both, so that a misspelt setting is noticed.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"the settings file {file} cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"the settings file {file} is not TOML: {error}") from None
    for name, value in (os.environ if environment is None else environment).items():
        if name.startswith(prefix + "_"):
            values[name.removeprefix(prefix + "_").lower()] = value
    try:
        loaded: dict[str, Any] = schema(unknown=RAISE).load(values)
    except ValidationError as error:
        lines = [f"  {name}: {'; '.join(map(str, texts))}" for name, texts in sorted(error.messages_dict.items())]
        source = f"{file} or {prefix}_*" if file is not None else f"{prefix}_*"
        raise SettingsError(f"settings in {source} are wrong:\n" + "\n".join(lines)) from None
    return loaded


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all, durably."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have what was put into a folder, or taken out of it, outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_readable_by_others(path: Path) -> None:
    """Refuse a key file that group or others can read."""
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path} holds keys and is readable by others; run: chmod 600 {path}")


def load_pins(file: Path) -> AdminPins:
    """Read the admin keys that a party pins: {"threshold": M, "keys": {name: hex}}."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        keys = {str(name): bytes.fromhex(value) for name, value in data["keys"].items()}
        return AdminPins(keys, int(data["threshold"]))
    except OSError as error:
        raise SettingsError(f"the pinned admin keys {file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError(f'{file} should hold {{"threshold": M, "keys": {{"name": "hex of 32 bytes"}}}}') from None
    except ProtocolError as error:
        raise SettingsError(f"{file}: {error.hint}") from None
