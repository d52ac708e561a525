"""How far this member's deposits are complete, told to the alliance, and how far all members' are, told to checks.

The service is told, too, which custodians lack some of them.
"""

import time

from insurer_agent.acting import Acting
from insurer_agent.store.database import Database
from insurer_agent.store.outbox import Outbox
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.progress import sign_report
from protocol.stamps import MAX_AS_OF_AGE
from protocol.watermark import Completeness, Directory, completeness, newest, sign_watermark
from transport.internal import CONTENT_TYPE, service_message_of
from transport.peers import Call, Peers

PATH = "/v1/watermarks"
PUBLISH_SECONDS = 10.0
_REREAD_SECONDS = 2.0


class DirectoryView:
    """Publishes the member's watermark, and keeps what the service's directory said last, for all processes."""

    def __init__(self, acting: Acting, peers: Peers, database: Database, outbox: Outbox, seconds: float) -> None:
        self._acting = acting
        self._peers = peers
        self._database = database
        self._outbox = outbox
        self._seconds = seconds
        self._read_at = -_REREAD_SECONDS
        self._data = b""
        self._until: dict[str, int] = {}

    def exchange(self) -> None:
        """Report how far the member is and keep the directory that comes back; raises `ProtocolError`."""
        party, now = self._acting.now(), time.time()
        manifest = party.manifest
        # What was made just now is not yet in every check: one may be as of a minute ago.
        settled = MAX_AS_OF_AGE + 2 * manifest.terms.tick_seconds
        watermark = sign_watermark(party, int(self._outbox.complete_until(settled)), now)
        report = sign_report(party, watermark, self._outbox.behind(manifest))
        call = Call(manifest.terms.service_url, PATH, encode(report), {"Content-Type": CONTENT_TYPE})
        reply = self._peers.call(call, self._seconds)
        directory = service_message_of(Directory, call, reply, manifest.terms.service_signing_key)
        self._database.run(
            "keep directory",
            lambda connection: connection.execute(
                "INSERT INTO setting (name, value) VALUES ('directory', %s)"
                " ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value",
                (encode(directory),),
            ),
        )

    def now(self) -> Completeness:
        """Return how complete the alliance's deposits are, as far as this member was told."""
        if time.monotonic() - self._read_at >= _REREAD_SECONDS:
            self._reread()
        return completeness(self._acting.now().manifest, self._until, time.time())

    def _reread(self) -> None:
        row = self._database.run(
            "read directory",
            lambda connection: connection.execute("SELECT value FROM setting WHERE name = 'directory'").fetchone(),
            one_statement=True,
        )
        data = b"" if row is None else bytes(row[0])
        if data != self._data:  # each watermark is a signature to verify
            try:
                self._until = newest(self._acting.now().manifest, decode(Directory, data).watermarks)
            except ProtocolError:  # damaged, or there is none yet
                self._until = {}
        self._data, self._read_at = data, time.monotonic()
