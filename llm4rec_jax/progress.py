"""Progress of long work on standard error: a bar with the time left on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import rich.console
import rich.progress

# Seconds between lines where there is no terminal; shorter work writes none.
LINE_SECONDS = 10.0

_T = TypeVar("_T")
_state = {"quiet": False, "bar": False}


def set_quiet(quiet: bool) -> None:
    """Turns progress and messages of training off, or on again, in this process."""
    _state["quiet"] = quiet


def is_quiet() -> bool:
    """Returns whether progress is turned off."""
    return _state["quiet"]


def take_terminal() -> bool:
    """Returns whether a bar may be shown now, on a terminal that shows no other; `release_terminal` gives it back."""
    if _state["quiet"] or _state["bar"] or not sys.stderr.isatty():
        return False
    _state["bar"] = True
    return True


def release_terminal() -> None:
    """Lets others show a bar again."""
    _state["bar"] = False


class Meter:
    """Shows the progress of one piece of work while it is entered.

    Pooch takes one as the bar of a download: it has `total`, `update`, `reset` and `close`.

    Args:
      work: Its name, in a word or two.
      total: Amount of it.
      unit: Plural noun of what is counted.

    Example:
      >>> with Meter("encode", 3, "texts") as meter:
      ...     meter.update(2)
      >>> meter.line(seconds=10.0)
      'encode: 2 of 3 texts, 5 s left'
    """

    def __init__(self, work: str, total: int = 0, unit: str = "") -> None:
        self.total, self.done = total, 0
        self._work, self._unit = work, unit
        self._started = self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if take_terminal():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(work, total=total or None)
            self._bar.start()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, amount: int) -> None:
        """Counts an amount as done."""
        self.done += amount
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total or None)
        elif now - self._last_line >= LINE_SECONDS and not is_quiet():
            self._last_line = now
            print(self.line(now - self._started), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """Words the progress after some seconds of work."""
        left = seconds * (self.total - self.done) / self.done if self.done and self.total else None
        counted = f"{self.done:,} of {self.total:,} {self._unit}" if self.total else f"{self.done:,} {self._unit}"
        return f"{self._work}: {counted.strip()}" + ("" if left is None else f", {left:.0f} s left")

    def reset(self) -> None:
        """Counts from zero again."""
        self.done = 0

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            release_terminal()


def track(
    things: Iterable[_T], work: str, total: int, unit: str, amount: Callable[[Any], int] = lambda thing: 1
) -> Iterator[_T]:
    """Yields the same things, and shows how far they are.

    Args:
      things: Pieces of the work, each done when the next one is asked for.
      work: Its name, in a word or two.
      total: Amount of work in all.
      unit: Plural noun of what is counted.
      amount: Amount of work in a piece.

    Example:
      >>> list(track([3, 1], "add", 2, "numbers"))
      [3, 1]
    """
    with Meter(work, total, unit) as meter:
        for thing in things:
            yield thing
            meter.update(amount(thing))
