"""The alliance's data directory: the newest watermark of each member, in a file each, for all of its workers."""

import secrets
import time
from pathlib import Path

from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.watermark import Directory, SignedWatermark, accept_watermark


class DataDirectory:
    """Takes watermarks and hands all of them out. Members verify them: what stands here needs no protection."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._manifest = manifest
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def exchange(self, signed: SignedWatermark) -> Directory:
        """Keep a member's watermark and return those of all; refuse one that the member did not make just now."""
        watermark = accept_watermark(self._manifest, signed, time.time())
        place = self._folder / watermark.member
        known = self._read(place)
        if known is None or known.watermark.issued_at <= watermark.issued_at:
            self._write(place, encode(signed))
        members = sorted(member.id for member in self._manifest.terms.members)
        found = (self._read(self._folder / member) for member in members)
        return Directory(watermarks=tuple(item for item in found if item is not None))

    def _write(self, place: Path, data: bytes) -> None:
        fresh = place.with_name(f".{place.name}.{secrets.token_hex(8)}")  # no member's name begins with a dot
        self._folder.mkdir(mode=0o700, exist_ok=True)  # it may have been cleared away since the start
        fresh.write_bytes(data)
        fresh.replace(place)

    @staticmethod
    def _read(place: Path) -> SignedWatermark | None:
        try:
            return decode(SignedWatermark, place.read_bytes())
        except (OSError, ProtocolError):
            return None
