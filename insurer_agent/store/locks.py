"""The advisory locks of an agent's database, each for one thing: two users of a number would wait for each other."""

from enum import IntEnum


class Lock(IntEnum):
    """Numbers by which processes of one agent take turns."""

    SCHEMA = 7_261_001
    DEPOSITOR = 7_261_002
    """With a second number, of a depositor."""
    MANIFEST = 7_261_003
    DEPOSITS = 7_261_004
    """Held by the process that sends deposits, for as long as it runs."""
    STAMPS = 7_261_005
    """With a second number, a shard."""
    WATERMARKS = 7_261_006
    """Held by the process that publishes watermarks, for as long as it runs."""
    SNAPSHOT = 7_261_007
    PARTITIONS = 7_261_008
    CHECK_JOBS = 7_261_009
    """Held by the process that asks the checks of jobs, while there are any."""
    RECHECK = 7_261_010
    """Held by the command that checks the insured persons again, for as long as it runs."""
    OWN_ANSWERS = 7_261_011
    """With a second number, of persons and rules that a check is about."""
    NEW_CHECK_JOB = 7_261_012
    """With a second number, of whose jobs are counted."""
