"""The alliance's data directory: the newest report of each member, in a file each, for all of the service's workers."""

import secrets
import threading
import time
from pathlib import Path

from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.progress import SignedReport, accept_report
from protocol.watermark import Directory, SignedWatermark

REREAD_SECONDS = 1.0
"""How old what `behind` says may be, so that a check does not wait for files."""
REPORT_SECONDS = 24 * 3600
"""How long a member's last word of who lacks its deposits stands. While a member is down none of them can come."""


class DataDirectory:
    """Takes reports, hands the watermarks in them out, and says whom they name as behind.

    Members verify the watermarks, and the rest only says whom to prefer: what stands here needs no protection.
    """

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self._folder = folder
        self._manifest = manifest
        self._members = sorted(member.id for member in manifest.terms.members)
        self._known: dict[str, tuple[object, SignedReport | None]] = {}
        self._lock = threading.Lock()
        self._behind: frozenset[tuple[int, int]] = frozenset()
        self._reread_at = 0.0
        folder.mkdir(mode=0o700, exist_ok=True)

    def exchange(self, signed: SignedReport) -> Directory:
        """Keep a member's report and return the watermarks of all; refuse one that the member did not make just now."""
        report = accept_report(self._manifest, signed, time.time())
        known = self._read(report.member)
        if known is None or known.report.issued_at <= report.issued_at:
            self._write(self._folder / report.member, encode(signed))
        return Directory(watermarks=self.watermarks())

    def watermarks(self) -> tuple[SignedWatermark, ...]:
        """Return the newest watermark of each member that has one; who relies on them verifies them."""
        found = (self._read(member) for member in self._members)
        return tuple(item.report.watermark for item in found if item is not None)

    def behind(self) -> frozenset[tuple[int, int]]:
        """Return each (shard, slot) that lacks a deposit by the newest word of its depositor, as of a second ago."""
        with self._lock:
            now = time.monotonic()
            if now >= self._reread_at:
                since = time.time() - REPORT_SECONDS
                found = (self._read(member) for member in self._members)
                reports = [item.report for item in found if item is not None and item.report.issued_at > since]
                self._behind = frozenset((place.shard, place.slot) for report in reports for place in report.behind)
                self._reread_at = now + REREAD_SECONDS
            return self._behind

    def _write(self, place: Path, data: bytes) -> None:
        fresh = place.with_name(f".{place.name}.{secrets.token_hex(8)}")  # no member's name begins with a dot
        self._folder.mkdir(mode=0o700, exist_ok=True)  # it may have been cleared away since the start
        fresh.write_bytes(data)
        fresh.replace(place)

    def _read(self, member: str) -> SignedReport | None:
        """Return a member's report, read anew where its file is another than the last time."""
        place = self._folder / member
        try:
            status = place.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._known.get(member)
            if known is None or known[0] != version:
                known = (version, _decoded(place.read_bytes()))
                self._known[member] = known
        except OSError:
            return None
        return known[1]


def _decoded(data: bytes) -> SignedReport | None:
    try:
        return decode(SignedReport, data)
    except ProtocolError:
        return None
