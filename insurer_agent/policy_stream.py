"""A Redis stream of policy events, as one consumer of a group sees it, and its dead letters.

Entries and fields are bytes as they were written. Replies are taken as Redis gives them (RESP2): the client's own
form has a dictionary of an entry's fields, which loses one that stands twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from transport.redis_link import connection_pool

FIRST = b"0-0"
ENTRIES_A_CLAIM = 100
ENTRY_GONE = "entry-gone"
_TIMEOUT_SECONDS = 10.0
_RAW = ("XREADGROUP", "XAUTOCLAIM", "XPENDING", "XINFO GROUPS")


@dataclass(frozen=True)
class StreamEntry:
    """An entry: `fields` has names and values in turn, or is None if it was deleted before it was taken."""

    id: bytes
    fields: tuple[bytes, ...] | None = field(repr=False)


@dataclass(frozen=True)
class DeadLetter:
    """An entry that is rejected, with a stable `code` and a `reason` that quotes nothing."""

    entry: StreamEntry
    code: str
    reason: str


@dataclass(frozen=True)
class Lag:
    """How far a group is behind: entries delivered and not acknowledged, not delivered yet (None: Redis before 7
    does not know), and in the stream altogether, acknowledged ones included.
    """

    pending: int
    undelivered: int | None
    length: int


class DeadLettersError(Exception):
    """The key of the dead letters holds something else than a stream."""


class PolicyStream:
    """One consumer's view. Every method raises redis.RedisError when Redis does not answer or refuses."""

    def __init__(self, url: str, name: str, group: str, consumer: str) -> None:
        """Connect when first asked. Raises SettingsError, which does not quote it, if `url` is no Redis URL."""
        # Never sent again by the client: an XREADGROUP whose reply is lost has delivered entries, and a second one
        # would deliver those after them, before them.
        pool = connection_pool(url, _TIMEOUT_SECONDS)
        self._redis: Any = Redis(connection_pool=pool)  # annotated for awaiting too, where it is at all
        for command in _RAW:
            self._redis.set_response_callback(command, _as_it_is)
        self._name, self._group, self._consumer = name, group, consumer
        self._dead_letters = f"{name}:rejected"

    def close(self) -> None:
        """End the connections."""
        self._redis.close()

    def open_group(self) -> None:
        """Create stream and group unless they exist; a new group begins with the stream's first entry."""
        try:
            self._redis.xgroup_create(self._name, self._group, id=FIRST, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def claim(self, idle_seconds: float) -> bool:
        """Take over what others have left pending that long; return whether nothing of others is pending any more."""
        cursor, idle = FIRST, int(idle_seconds * 1000)
        while True:
            reply = self._ask(
                "XAUTOCLAIM", self._name, self._group, self._consumer, idle, cursor, "COUNT", ENTRIES_A_CLAIM
            )
            # Redis 7 and later drop entries that were deleted meanwhile, and say so here; of 6 see `own`.
            gone = [StreamEntry(bytes(one), None) for deleted in reply[2:] for one in deleted]
            self.settle((), [gone_letter(entry) for entry in gone])
            cursor = bytes(reply[0])
            if cursor == FIRST:
                break
        total, mine = self.pending()
        return total == mine

    def own(self, after: bytes, count: int) -> list[StreamEntry]:
        """Return this consumer's pending entries behind the id `after`, in the stream's order, `count` at most."""
        return self._read(count, None, after)

    def new(self, count: int, wait_seconds: float) -> list[StreamEntry]:
        """Return entries that no consumer was given yet, `count` at most, waiting for the first of them."""
        return self._read(count, int(wait_seconds * 1000), b">")

    def _read(self, count: int, block: int | None, after: bytes) -> list[StreamEntry]:
        wait = () if block is None else ("BLOCK", block)
        group = ("XREADGROUP", "GROUP", self._group, self._consumer)
        reply = self._ask(*group, "COUNT", count, *wait, "STREAMS", self._name, after)
        if not reply:
            return []
        ((_, entries),) = reply
        return [StreamEntry(bytes(one), None if fields is None else tuple(fields)) for one, fields in entries]

    def pending(self) -> tuple[int, int]:
        """Return how many entries of the group are delivered and not acknowledged, and how many of these are ours."""
        total, _, _, consumers = self._ask("XPENDING", self._name, self._group)
        by_name = {bytes(name): int(count) for name, count in consumers or ()}
        return int(total), by_name.get(self._consumer.encode(), 0)

    def settle(self, taken: Sequence[bytes], rejected: Sequence[DeadLetter]) -> None:
        """Acknowledge the ids `taken`, and move the rejected to the dead letters, all in one transaction or not at all.

        A dead letter has the fields rejected_id, rejected_code and rejected_reason, then the entry's own.
        Raises DeadLettersError.
        """
        ids = [*taken, *(letter.entry.id for letter in rejected)]
        if not ids:
            return
        with self._redis.pipeline(transaction=True) as pipeline:
            if rejected:
                # Redis carries a transaction on after a command that fails: the entry would be acknowledged and lost.
                pipeline.watch(self._dead_letters)
                if pipeline.type(self._dead_letters) not in (b"stream", b"none"):
                    raise DeadLettersError("the key of the dead letters holds no stream")
                pipeline.multi()
            for letter in rejected:
                told = ("rejected_id", letter.entry.id, "rejected_code", letter.code, "rejected_reason", letter.reason)
                pipeline.execute_command("XADD", self._dead_letters, "*", *told, *(letter.entry.fields or ()))
            pipeline.execute_command("XACK", self._name, self._group, *ids)
            pipeline.execute()

    def lag(self) -> Lag:
        """Measure how far the group is behind."""
        total, _ = self.pending()
        undelivered = None
        for group in self._ask("XINFO GROUPS", self._name):
            about = dict(zip(group[::2], group[1::2], strict=True))
            if about.get(b"name") == self._group.encode() and about.get(b"lag") is not None:
                undelivered = int(about[b"lag"])
        return Lag(total, undelivered, int(self._ask("XLEN", self._name)))

    def _ask(self, *command: str | bytes | int) -> Any:  # noqa: ANN401  Redis' reply
        return self._redis.execute_command(*command)


def gone_letter(entry: StreamEntry) -> DeadLetter:
    """Return the dead letter of an entry that was deleted before it was taken."""
    return DeadLetter(entry, ENTRY_GONE, "the entry was deleted from the stream before it was taken")


def _as_it_is(reply: Any, **_: object) -> Any:  # noqa: ANN401  Redis' reply
    return reply
