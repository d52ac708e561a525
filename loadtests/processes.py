"""What the processes below one process use: of the processor, and of memory. From /proc, so on Linux alone."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2
"""As clock_getcpuclockid(3) makes the number of a process's clock."""
_PARENT, _TIMES = 1, slice(11, 15)
"""Of /proc/PID/stat, after the name: the parent, and the ticks of it and of its children that have ended."""


def tree(root: int) -> list[int]:
    """Return a process and all below it."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children[int(fields[_PARENT])].append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found


def core_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that processes have used so far, in seconds, with that of children that have ended."""
    return sum(sum(map(int, fields[_TIMES])) for pid in pids if (fields := _stat(pid))) / _TICKS_A_SECOND


def machine_core_seconds() -> float:
    """Return the processor time that the whole machine has used, in seconds."""
    user, nice, system, _idle, _waiting, interrupts, soft, *_ = Path("/proc/stat").read_text("ascii").split()[1:9]
    return sum(map(int, (user, nice, system, interrupts, soft))) / _TICKS_A_SECOND


def process_clock(pid: int) -> float:
    """Return the processor time, in seconds, that one process has used so far, to the microsecond."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def command(pid: int) -> str:
    """Return a process's command line, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\x00", b" ").decode(errors="replace")
    except OSError:
        return ""


def parent(pid: int) -> int:
    """Return a process's parent, 0 if it has ended."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if fields else 0


def memory_mb(pid: int) -> dict[str, float]:
    """Return a process's memory in MB: `rss`, all pages it has, and `pss`, in which pages that n share count 1/n."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0].lower(): int(line.split()[1]) for line in lines if line.startswith(("Rss:", "Pss:"))}
    return {name: round(1024 * value / 1e6, 1) for name, value in found.items()}


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
