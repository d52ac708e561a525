"""The manifests that the service hands out: the newest, and all before it, in a file each, for all of its workers.

Whoever asks verifies what it gets by the keys that it pins: the service verifies too, so that what it would hand out in
vain is refused where it is published.
"""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ProtocolError
from protocol.manifest import (
    AdminPins,
    Manifest,
    open_manifest,
    require_same_connections,
    require_succession,
    verify_manifest,
)
from service.file_lock import locked
from transport.settings import sync_folder

log = logging.getLogger(__name__)

MANIFESTS = "manifests"
"""The name of the folder, in the service's state directory."""
LOOK_SECONDS = 1.0
"""How old what `newest` says may be, so that no request waits for files."""
_NAME = re.compile(r"[0-9]{20}\.bin")


@dataclass(frozen=True)
class _Kept:
    file: Path
    manifest: Manifest


class Published:
    """The manifests in a folder. `first`, a signed manifest's file, is put among them when it is a newer one.

    Raises, as does `publish`, `ProtocolError` with why it cannot be; `OSError` where `first` cannot be read.
    """

    def __init__(self, folder: Path, pins: AdminPins, first: Path) -> None:
        self._folder = folder
        self._pins = pins
        self._lock = threading.Lock()
        self._kept: dict[int, _Kept] = {}
        self._bad: set[str] = set()
        self._look_at = 0.0
        folder.mkdir(mode=0o700, exist_ok=True)
        data = first.read_bytes()
        manifest = verify_manifest(data, pins)
        with self._alone():
            self._look()
            known = self._kept.get(manifest.terms.serial)
            if known is not None and known.manifest.hash != manifest.hash:
                raise ProtocolError("manifest-forked", "another manifest of the same serial has been published")
            if known is None:
                self._require_new(manifest)
                self._keep(manifest, data)
            self._newest = self._read_newest()

    def newest(self) -> tuple[bytes, Manifest]:
        """Return the newest signed manifest, as of a second ago, and what it says. It may have expired."""
        if time.monotonic() >= self._look_at:
            with self._lock:
                self._look()
                if self._newest[1].terms.serial != max(self._kept):
                    self._newest = self._read_newest()
        return self._newest

    def look_again(self) -> None:
        """Have the next look at the folder be now: somebody knows a manifest that this process does not."""
        self._look_at = 0.0

    def by_hash(self, manifest_hash: bytes) -> bytes | None:
        """Return a signed manifest that is, or was, the newest; None for any other."""
        kept = self._find(manifest_hash)
        if kept is None:
            self.newest()
            kept = self._find(manifest_hash)
        try:
            return None if kept is None else kept.file.read_bytes()
        except OSError:
            return None

    def known(self, manifest_hash: bytes) -> Manifest | None:
        """Return what a manifest that is, or was, the newest says; None for any other."""
        kept = self._find(manifest_hash)
        return None if kept is None else kept.manifest

    def publish(self, data: bytes, now: float) -> Manifest:
        """Make a signed manifest the newest, for all workers, durably. Publishing it again changes nothing.

        Refuses what `open_manifest`, `require_succession` and `require_same_connections` refuse: what is malformed,
        inconsistent, under-signed or expired; not newer than the newest; a fork; what cannot follow it.
        """
        manifest = verify_manifest(data, self._pins)
        with self._alone():
            self._look()
            known = self._kept.get(manifest.terms.serial)
            if known is not None and known.manifest.hash == manifest.hash:
                return known.manifest
            newest = self._kept[max(self._kept)].manifest
            open_manifest(data, self._pins, now, newest.terms.serial, newest.hash)
            require_same_connections(newest.terms, manifest.terms)
            self._require_new(manifest)
            self._keep(manifest, data)
        self.look_again()
        return manifest

    def require_next(self, manifest: Manifest) -> None:
        """Refuse, as `publish` would, what could not be published next; whether it is signed is not asked."""
        with self._alone():
            self._look()
            newest = self._kept[max(self._kept)].manifest
            require_same_connections(newest.terms, manifest.terms)
            self._require_new(manifest)

    # --- files

    def _find(self, manifest_hash: bytes) -> _Kept | None:
        return next((kept for kept in tuple(self._kept.values()) if kept.manifest.hash == manifest_hash), None)

    def _require_new(self, manifest: Manifest) -> None:
        """Refuse what cannot follow all that is kept."""
        before = [self._kept[serial].manifest.terms for serial in sorted(self._kept)]
        if before:
            require_succession(before[-1], manifest.terms, before[:-1])

    def _read_newest(self) -> tuple[bytes, Manifest]:
        kept = self._kept[max(self._kept)]
        return kept.file.read_bytes(), kept.manifest

    def _look(self) -> None:
        """Take up the files that have come since the last look; what stands there was verified, and is again."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        files = (file for file in self._folder.iterdir() if _NAME.fullmatch(file.name))
        for file in sorted(file for file in files if int(file.stem) not in self._kept and file.name not in self._bad):
            try:
                manifest = verify_manifest(file.read_bytes(), self._pins)
                if manifest.terms.serial != int(file.stem):
                    raise ProtocolError("malformed", "the manifest has another serial than its file")  # noqa: TRY301  as verify_manifest
            except OSError as error:
                log.error("%s is not handed out: %s", file, error.strerror)  # noqa: TRY400  no fault of ours
            except ProtocolError as error:
                self._bad.add(file.name)
                log.error("%s is not handed out: %s", file, error.code)  # noqa: TRY400  as above
            else:
                self._kept[manifest.terms.serial] = _Kept(file, manifest)

    def _keep(self, manifest: Manifest, data: bytes) -> None:
        """Write a manifest's file, whole or not at all, durably, and never over another."""
        file = self._folder / f"{manifest.terms.serial:020d}.bin"
        fresh = self._folder / f".{file.name}.{secrets.token_hex(8)}"
        try:
            with fresh.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.link(fresh, file)
        except FileExistsError:  # a damaged one
            raise ProtocolError("manifest-forked", f"{file} stands there already; see the service's log") from None
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(self._folder)
        self._kept[manifest.terms.serial] = _Kept(file, manifest)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have this thread be the only one, of all processes, that adds a manifest."""
        with self._lock, locked(self._folder / ".lock"):
            yield
