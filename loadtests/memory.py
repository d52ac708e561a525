"""How long dependent random reads take, by how much memory they are spread over.

    .venv/bin/python loadtests/memory.py

Each read's place stands in what was read before (a ring over lines of 64 bytes in random order), so no processor can
begin the next early: the figures step up where a cache ends, and with it what the tables of pages need. It tells hours
of a shared machine apart, whose last cache is others', too. A small C program, compiled for the run. Prints
nanoseconds, medians of several rounds.
"""

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MEGABYTES = (0.25, 1, 4, 16)
ROUNDS = 5
SOURCE = """
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static uint64_t state = 88172645463325252u;

static uint64_t drawn(uint64_t below) /* Marsaglia's xorshift: a random order, and no secret */
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

double read_ns(size_t bytes, size_t reads)
{
    size_t lines = bytes / 64;
    char *memory = aligned_alloc(4096, lines * 64);
    size_t *order = malloc(lines * sizeof *order);
    if (memory == NULL || order == NULL) {
        free(memory);
        free(order);
        return -1;
    }
    for (size_t i = 0; i < lines; i++)
        order[i] = i;
    for (size_t i = lines - 1; i > 0; i--) {
        size_t other = drawn(i), swapped = order[i];
        order[i] = order[other];
        order[other] = swapped;
    }
    for (size_t i = 0; i < lines; i++)
        *(char **)(memory + order[i] * 64) = memory + order[(i + 1) % lines] * 64;
    char *volatile at = memory;
    char *place = at;
    for (size_t i = 0; i < lines; i++)
        place = *(char **)place;
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (size_t i = 0; i < reads; i++)
        place = *(char **)place;
    clock_gettime(CLOCK_MONOTONIC, &ended);
    at = place;
    free(memory);
    free(order);
    return ((ended.tv_sec - began.tv_sec) * 1e9 + (ended.tv_nsec - began.tv_nsec)) / reads;
}
"""


def read_ns(reads: int = 400_000, rounds: int = ROUNDS) -> dict[str, float]:
    """Return nanoseconds a read by megabytes; empty where that cannot be measured, as without a C compiler."""
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory) / "memory.c", Path(directory) / "memory.so"
        source.write_text(SOURCE, encoding="utf-8")
        line = ["cc", "-O2", "-std=gnu11", "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            subprocess.run(line, check=True, capture_output=True)
            measure = ctypes.CDLL(str(library)).read_ns
        except (OSError, subprocess.CalledProcessError):
            return {}
    measure.argtypes, measure.restype = [ctypes.c_size_t, ctypes.c_size_t], ctypes.c_double
    found = {
        f"{size:g}": round(statistics.median(measure(int(size * (1 << 20)), reads) for _ in range(rounds)), 1)
        for size in MEGABYTES
    }
    return found if min(found.values()) > 0 else {}


def main() -> int:
    """Measure and print."""
    found = read_ns()
    if not found:
        print("it cannot be measured: is there a C compiler?", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
