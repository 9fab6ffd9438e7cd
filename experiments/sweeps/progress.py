"""Progress of trials: a live table on a terminal, a line for each change elsewhere."""

import functools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import rich.box
import rich.console
import rich.live
import rich.table
import rich.text

from experiments.cli.console import visible
from experiments.sweeps.schedule import Entry
from llm4rec_jax.checksums import Damaged
from llm4rec_jax.evaluation.metrics import less_is_better
from llm4rec_jax.training import metric_writer

_ORDER = ("running", "failed", "interrupted", "finished", "pruned", "waiting")
_STYLES = {"running": "bold", "failed": "red", "interrupted": "yellow", "waiting": "dim"}


class Standing(NamedTuple):
    """The progress of a run, from its metrics.jsonl.

    Attributes:
      step, steps: made, and to be made.
      best: the best validation so far of the metric that the run selects by; None before the first.
      left: seconds of training to come at the rate so far; None when that cannot be said.
    """

    step: int
    steps: int
    best: float | None
    left: float | None


def standing(entry: Entry) -> Standing:
    """Returns the progress of an entry's run. Damaged records count as none: the run itself reports them."""
    train = entry.run.config.train
    return standing_of(entry.run.folder / "metrics.jsonl", train.metric, train.steps)


def standing_of(file: Path, metric: str, steps: int) -> Standing:
    """Returns the progress that a metrics.jsonl tells of.

    Args:
      file: The records; a missing or damaged file has none.
      metric: Validation metric that the run selects by.
      steps: Number of steps of the run.
    """
    try:
        found = file.stat()
        records = _records(file, found.st_size, found.st_mtime_ns)
    except (FileNotFoundError, Damaged):
        records = []
    step = max((r["step"] for r in records), default=0)
    values = [r[metric] for r in records if r["kind"] == "validation" and metric in r]
    rated = [(r["step"], r["seconds"]) for r in records if r["kind"] == "train"]
    left = None
    if len(rated) > 1:
        (first, since), (last, until) = rated[0], rated[-1]
        left = (steps - step) * (until - since) / max(last - first, 1)
    best = min if less_is_better(metric) else max
    return Standing(step, steps, best(values, default=None), left)


@functools.lru_cache(maxsize=256)
def _records(file: Path, size: int, changed: int) -> list[dict[str, Any]]:
    """Returns the records of a metrics.jsonl of this size and time."""
    return metric_writer.read(file)


class Watch:
    """Shows entries on a console while it is entered.

    Args:
      console: written to.
      entries: shown; may grow.
      workers: trials at a time, for the estimate of what is left.
    """

    def __init__(self, console: rich.console.Console, entries: Sequence[Entry], workers: int) -> None:
        self._console, self._entries, self._workers = console, entries, workers
        self._live = rich.live.Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self.beat(every=0)
            self._live.stop()

    def log(self, text: str) -> None:
        """A line of its own."""
        self._console.print(visible(text, keep="\n"), highlight=False, markup=False, soft_wrap=True)

    def changed(self, entry: Entry) -> None:
        """Says what has become of an entry; on a terminal, what failed only, since the table shows the rest."""
        if self._live is not None and entry.status != "failed":
            return
        words = f"{entry.run.trial.name}: {entry.status}"
        if entry.status == "running":
            words += f" in {entry.run.folder.name}"
        else:
            at = standing(entry)
            words += "" if entry.seconds is None else f", {duration(entry.seconds)}"
            if at.best is not None:
                words += f", validation {entry.run.config.train.metric} {at.best:.4f}, step {at.step}"
            words += f": {entry.error}" if entry.error else ""
            words += f"; {Counter(e.status for e in self._entries)['waiting']} to come"
        self.log(words)

    def beat(self, every: float = 1.0) -> None:
        """Draws the table anew when it is `every` seconds old."""
        if self._live is not None and time.monotonic() - self._shown >= every:
            self._shown = time.monotonic()
            self._live.update(self.table(self._console.height - 5), refresh=True)

    def table(self, height: int) -> rich.table.Table:
        """Returns the entries in at most `height` rows: running ones first, then failed, then the last finished."""
        counts = Counter(entry.status for entry in self._entries)
        parts = [f"{counts[status]} {status}" for status in _ORDER if counts[status]]
        if (left := self._left(counts)) is not None:
            parts.append(f"about {duration(left)} to go")
        table = rich.table.Table(box=rich.box.SIMPLE, caption=", ".join(parts), caption_justify="left")
        for name in ("trial", "status"):
            table.add_column(name)
        for name in ("step", "best validation", "time", "to go"):
            table.add_column(name, justify="right")
        ranked = sorted(self._entries, key=lambda e: (_ORDER.index(e.status), -(e.ended or 0)))
        for entry in ranked[: max(height, 1)]:
            style = _STYLES.get(entry.status)
            # Text: Rich would read "[b]" in a name as markup.
            name = rich.text.Text(visible(entry.run.trial.name))
            if entry.status == "waiting":
                table.add_row(name, entry.status, style=style)
                continue
            at = standing(entry)
            best = "" if at.best is None else f"{entry.run.config.train.metric} {at.best:.4f}"
            running = entry.status == "running"
            seconds = time.monotonic() - entry.began if running and entry.began is not None else entry.seconds
            table.add_row(
                name,
                entry.status,
                f"{at.step}/{at.steps}",
                best,
                "" if seconds is None else duration(seconds),
                duration(at.left) if running and at.left is not None else "",
                style=style,
            )
        return table

    def _left(self, counts: Counter[str]) -> float | None:
        """Estimates the seconds to the end of all, from the mean time of finished ones."""
        took = [e.seconds for e in self._entries if e.status == "finished" and e.seconds]
        if not took:
            return None
        mean = sum(took) / len(took)
        ran = sum(time.monotonic() - e.began for e in self._entries if e.status == "running" and e.began is not None)
        to_come = mean * (counts["waiting"] + counts["running"]) - min(ran, mean * counts["running"])
        return to_come / self._workers if to_come > 0 else None


def duration(seconds: float) -> str:
    """Returns seconds as text, in seconds, minutes or hours.

    Example:
      >>> duration(42.4), duration(600), duration(9000)
      ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
