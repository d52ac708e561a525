"""What whoever imports is told: progress, rejected rows by number and reason, a summary; never what rows hold."""

import time
from collections.abc import Callable
from typing import TextIO

_TERMINAL_SECONDS = 0.5
_LINE_SECONDS = 10.0


class Report:
    """Lines to a stream, and progress: a line that renews itself on a terminal, else a plain line now and then."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._renews = stream.isatty()
        self._width = 0  # of the progress that stands in the terminal's last line
        self._began = self._told = clock()

    def begin(self) -> None:
        """Measure rate and time from now on."""
        self._began = self._told = self._clock()

    def line(self, text: str) -> None:
        """Print a line."""
        self._erase()
        self._stream.write(text + "\n")
        self._stream.flush()

    def progress(self, name: str, done: int, fraction: float | None, *, things: str = "rows") -> None:
        """Tell how many rows or other things are done and, by the `fraction` of all, how long the rest will take."""
        now = self._clock()
        if now - self._told < (_TERMINAL_SECONDS if self._renews else _LINE_SECONDS):
            return
        self._told = now
        spent = now - self._began
        text = f"{name}: {done:,} {things}, {done / spent:,.0f} a second"
        if fraction:
            text += f", {fraction:.0%}, about {_duration(spent * (1 - fraction) / fraction)} left"
        if self._renews:
            self._erase()
            self._width = len(text)
            self._stream.write(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _erase(self) -> None:
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
