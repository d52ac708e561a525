"""A picture of where a check's time goes, as SVG, from the figures of a bench.

.venv/bin/python loadtests/check_picture.py [--figures build/bench.json] [--out build/check-time.svg]
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 920, 262, 150, 104, 26, 16
COLOURS = {"requester": "#3b6fb6", "service": "#d98032", "custodians": "#3f9060", "all": "#8a8a8a", "rest": "#c9c9c9"}
NAMES = {
    "requester": "requester's agent",
    "service": "lookup service",
    "custodians": "four custodians",
    "all": "all parties",
    "rest": "the rest",
}
REST = "rest: HTTP, transport, waiting"
FAINT = "#ddd"
_FONT = 'font-family="sans-serif" font-size="13" fill="#222"'


@dataclass(frozen=True)
class Bar:
    """A step: whose it is, its milliseconds on the way, and those of the processor over all parties."""

    label: str
    whose: str
    way: float
    core: float


def bars(figures: Mapping[str, Any]) -> tuple[float, list[Bar]]:
    """Return a check's median time, in milliseconds, and its steps; what they do not explain is the last."""
    name = "tls" if "check_p50_ms_tls" in figures else "plain"
    whole, core = figures[f"check_p50_ms_{name}"], figures[f"check_core_ms_one_client_{name}"]
    found = []
    for step, taken in figures["check_steps_ms"].items():
        whose, _, what = step.lstrip("0123456789 ").partition(": ")
        found.append(Bar(f"{whose}: {what}", whose, taken["way"], taken["core"]))
    rest = Bar(REST, "rest", whole - sum(bar.way for bar in found), core - sum(bar.core for bar in found))
    return whole, [*found, rest]


def picture(figures: Mapping[str, Any]) -> str:
    """Return the SVG."""
    whole, steps = bars(figures)
    how = "mutual TLS on every hop" if "check_p50_ms_tls" in figures else "plain HTTP"
    scale = (WIDTH - LEFT - RIGHT) / max(whole, sum(bar.way for bar in steps))
    bottom = TOP + ROW * len(steps)
    cores = figures["machine"]["cores"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 58}" {_FONT}>',
        _box(0, 0, WIDTH, bottom + 58, "#fff"),
        _text(20, 28, f"Where the {whole:.1f} ms of a check go", size=18, weight="bold"),
        _text(20, 50, f"Median of one client's checks, {how}, an alliance of six with all parties on {cores} cores."),
        *_legend(),
        _text(WIDTH - 88, TOP - 10, "ms", anchor="end", weight="bold"),
        _text(WIDTH - 16, TOP - 10, "core-ms", anchor="end", weight="bold"),
        *_axis(whole, scale, bottom),
    ]
    at = 0.0
    for place, bar in enumerate(steps):
        parts += _bar(bar, TOP + ROW * place, LEFT + scale * at, scale)
        at += max(0.0, bar.way)
    spent = sum(bar.core for bar in steps)
    parts += [
        _text(LEFT - 10, bottom + 42, "together", anchor="end", weight="bold"),
        _text(WIDTH - 88, bottom + 42, f"{whole:.1f}", anchor="end", weight="bold"),
        _text(WIDTH - 16, bottom + 42, f"{spent:.1f}", anchor="end", weight="bold"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend() -> list[str]:
    parts, x = [], 20
    for whose, colour in COLOURS.items():
        parts += [_box(x, 64, 12, 12, colour), _text(x + 18, 75, NAMES[whose])]
        x += 34 + 8 * len(NAMES[whose])
    return parts


def _axis(whole: float, scale: float, bottom: int) -> list[str]:
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100) if whole / step <= 10)  # noqa: PLR2004  marks that fit
    parts = []
    for number in range(int(whole / step) + 1):
        x = LEFT + scale * step * number
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="{FAINT}"/>')
        parts.append(_text(x, bottom + 16, f"{step * number:g}", anchor="middle", size=11))
    parts.append(_text(LEFT + scale * whole + 8, bottom + 16, "ms", size=11))
    return parts


def _bar(bar: Bar, top: int, left: float, scale: float) -> list[str]:
    width, base = max(1.0, scale * bar.way), top + ROW - 8
    return [
        _text(LEFT - 10, base, bar.label, anchor="end"),
        _box(left, top + (ROW - BAR) // 2, width, BAR, COLOURS[bar.whose]),
        _text(WIDTH - 88, base, f"{bar.way:.2f}", anchor="end"),
        _text(WIDTH - 16, base, f"{bar.core:.2f}", anchor="end"),
    ]


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--out", type=Path, default=Path("build/check-time.svg"))
    args = parser.parse_args()
    args.out.write_text(picture(json.loads(args.figures.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
