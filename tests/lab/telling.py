"""How is a story of steps told at a terminal, while it happens and in the end?

A step says what is expected, does it, and returns what was measured. 80 columns; colour only where somebody looks.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

COLUMNS = 80
_INDENT = " " * 6
_GREEN, _RED, _BOLD, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class Measured:
    """What a step found, in words with figures, and whether that is what was expected."""

    words: str
    held: bool


@dataclass(frozen=True)
class Step:
    title: str
    expected: str
    act: Callable[[], Measured]


@dataclass(frozen=True)
class Told:
    """A step that is over. `measured` is None for one that was not begun."""

    step: Step
    measured: Measured | None
    seconds: float

    @property
    def held(self) -> bool:
        return self.measured is not None and self.measured.held


class Story:
    """Tells steps to standard output. `errors`: what makes a step fail, and ends the story there."""

    def __init__(self, errors: tuple[type[Exception], ...]) -> None:
        self._errors = errors
        self._colour = (
            sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        )
        self._started = time.monotonic()

    def say(self, words: str) -> None:
        """Progress, at once."""
        print(self._painted(_DIM, _wrapped("... ", words)), flush=True)

    def tell(self, steps: Sequence[Step]) -> list[Told]:
        told: list[Told] = []
        for number, step in enumerate(steps, 1):
            print("\n" + self._painted(_BOLD, f"[{number}/{len(steps)}] {step.title}"))
            print(_wrapped("expected: ", step.expected), flush=True)
            began = time.monotonic()
            try:
                measured = step.act()
                ended = False
            except self._errors as error:
                measured, ended = Measured(str(error), False), True
            done = Told(step, measured, time.monotonic() - began)
            print(_wrapped("measured: ", measured.words))
            print(f"{_INDENT}{self._verdict(done)} ({done.seconds:.1f} s)", flush=True)
            told.append(done)
            if ended:
                # What state the network is in now is not known: later steps would prove nothing.
                told += [Told(later, None, 0.0) for later in steps[number:]]
                break
        return told

    def sum_up(self, told: Sequence[Told]) -> None:
        wide = max(len(done.step.title) for done in told)
        print("\n" + self._painted(_BOLD, f"{'':5}{'STEP':{wide}}  MEASURED"))
        for done in told:
            words = done.measured.words if done.measured else "not begun"
            lines = textwrap.wrap(words, COLUMNS - wide - 7) or [""]
            failed = "FAIL " if done.measured else "-    "
            mark = self._painted(_GREEN, "ok   ") if done.held else self._painted(_RED, failed)
            print(f"{mark}{done.step.title:{wide}}  {lines[0]}")
            for line in lines[1:]:
                print(f"{'':{wide + 7}}{line}")
        held = sum(done.held for done in told)
        print(f"\n{held} of {len(told)} steps held, in {time.monotonic() - self._started:.0f} s.", flush=True)

    def _verdict(self, done: Told) -> str:
        return self._painted(_GREEN, "held") if done.held else self._painted(_RED, "DID NOT HOLD")

    def _painted(self, colour: str, words: str) -> str:
        return f"{colour}{words}{_PLAIN}" if self._colour else words


def _wrapped(label: str, words: str) -> str:
    indent = _INDENT + " " * len(label)
    return textwrap.fill(words, COLUMNS, initial_indent=_INDENT + label, subsequent_indent=indent)
