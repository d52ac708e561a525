"""What a bench's figures must be, what to reach for, and the table that sets them against what was measured.

.venv/bin/python loadtests/targets.py [--figures build/bench.json]
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capacity import MOST_BUSY, tail_of_one_server

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A row of the table. `figure` is read, and divided by `against` where that is named; `noise` is in percent."""

    what: str
    unit: str
    must: float
    reach: float
    figure: str
    against: str | None = None
    noise: str | None = None
    more_is_better: bool = False

    def read(self, figures: Figures) -> float | None:
        """Return what was measured, or None where a part of it was not."""
        value = figures.get(self.figure)
        if self.against is None or value is None:
            return value
        other = figures.get(self.against)
        return None if other is None else value / other

    def ratio(self, measured: float) -> float:
        """Return measured over must, or must over measured where more is better: up to 1 is good."""
        return self.must / measured if self.more_is_better else measured / self.must

    def verdict(self, measured: float) -> str:
        """Return which of the two columns is met."""

        def meets(bound: float) -> bool:
            return measured >= bound if self.more_is_better else measured <= bound

        return "reached" if meets(self.reach) else "met" if meets(self.must) else "short"


TARGETS = (
    Target(
        "p50 of a check, TLS on every hop, against the central check's",
        *("times", 10, 5, "check_p50_ms_tls"),
        against="central_p50_ms",
        noise="check_noise_percent_tls",
    ),
    Target(
        "the same, TLS off",
        *("times", 8, 4, "check_p50_ms_plain"),
        against="central_p50_ms",
        noise="check_noise_percent_plain",
    ),
    Target(
        "core-ms of a check against those of its cryptography",
        *("times", 2.5, 1.5, "core_ms_per_check"),
        against="crypto_core_ms_per_check",
        noise="core_ms_noise_percent",
    ),
    Target(
        "p99 at half of saturation against p50",
        *("times", 3, 2, "p99_over_p50"),
        noise="p99_over_p50_noise_percent",
    ),
    Target(
        "single checks",
        *("a second", 80, 200, "single_per_s"),
        noise="single_per_s_noise_percent",
        more_is_better=True,
    ),
    Target(
        "checks by batches of 1,000",
        *("a second", 400, 1500, "batch_per_s"),
        noise="batch_per_s_noise_percent",
        more_is_better=True,
    ),
    Target(
        "a further rule in the same check",
        *("percent", 10, 5, "further_rule_percent"),
    ),
    Target(
        "range-checked deposits",
        *("a second", 250, 1000, "deposits_per_s"),
        noise="deposits_noise_percent",
        more_is_better=True,
    ),
    Target("memory of an agent's worker, idle", "MB", 120, 80, "idle_agent_mb"),
    Target("the same under load", "MB", 120, 80, "agent_mb"),
)


def table(figures: Figures) -> str:
    """Return the table, as Markdown."""
    lines = [
        "| what | must | reach for | measured | noise | ratio to must | verdict |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for target in TARGETS:
        measured, noise = target.read(figures), figures.get(target.noise or "")
        told = "-" if noise is None else f"{noise:.0f} %"
        if measured is None:
            cells = ("not measured", "-", "-", "-")
        else:
            cells = (_number(measured), told, f"{target.ratio(measured):.2f}", target.verdict(measured))
        bounds = (f"{target.must:g} {target.unit}", f"{target.reach:g}")
        lines.append("| " + " | ".join((target.what, *bounds, *cells)) + " |")
    return "\n".join(lines)


def beside(figures: Figures) -> list[str]:
    """Return what the table is to be read with: the same tail of others, and how this machine reads its memory."""
    lines = []
    if "central_p99_over_p50" in figures:
        lines.append(
            f"the central check by the same measure: p99 {figures['central_p99_over_p50']:.1f} times p50 at half of its"
            f" saturation, {figures['central_per_s']:.0f} a second"
        )
        busy = figures.get("half_of_cores", 1.0)
        if busy <= MOST_BUSY:
            lines[-1] += (
                f"; one server that takes each as long, busy for {busy:.2f} of the time as the cores are:"
                f" {tail_of_one_server(busy):.1f} times (M/D/1)"
            )
    machine = figures.get("machine", {})
    first, last = machine.get("read_ns_by_mb"), machine.get("read_ns_by_mb_at_the_end")
    if first and last:
        told = ", ".join(f"{first[size]:g} and {last[size]:g} ns in {size} MB" for size in first)
        lines.append(f"dependent random reads of memory, before and after: {told}")
    return lines


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004  digits that say something


def main() -> int:
    """Print the table of figures that were measured before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    figures = json.loads(args.figures.read_text(encoding="utf-8"))
    print("\n\n".join([table(figures), *beside(figures)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
