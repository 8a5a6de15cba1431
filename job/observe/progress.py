"""What a person sees on a terminal: a progress bar, event lines above it, and a closing summary."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from job import streams
from job.logs import LogFormat, write_line
from job.texts import visible

_BAR_COLUMNS, _LEAST_COLUMNS = 20, 60
"""Of the bar itself, and of a terminal that has room for one."""


class Display:
    """A progress bar on a terminal that can draw one; nothing at all elsewhere, where events say it."""

    def __init__(self, log_format: LogFormat, *, is_silent: bool = False) -> None:
        self.placement = ""
        """Where the replicas are; empty when there is only one."""
        self._progress: Any = None
        self._task: Any = None
        self._num_epochs = 0
        can_draw = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._is_shown = log_format == "text" and can_draw and not is_silent

    def start(self, *, num_steps: int, done_steps: int, num_epochs: int) -> None:
        """Show the bar; the first steps are traced and compiled before anything else can be said of them."""
        if not self._is_shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(file=streams.steering(sys.stdout))
        text = Column(no_wrap=True, overflow="crop")
        self._num_epochs = num_epochs
        self._progress = Progress(
            *([BarColumn(bar_width=_BAR_COLUMNS)] if console.width >= _LEAST_COLUMNS else []),
            TextColumn("{task.fields[said]}", markup=False, table_column=text),
            console=console,
            transient=True,
        )
        epoch, share = min(done_steps * num_epochs // num_steps + 1, num_epochs), done_steps / num_steps
        self._task = self._progress.add_task(
            "train", total=num_steps, completed=done_steps, said=self._say(epoch, share, ["compiling"])
        )
        self._progress.start()
        # Rich has put itself before both streams, to print above the bar, and obeys colours and links in what it gets there.
        sys.stdout, sys.stderr = streams.front_of(sys.stdout), streams.front_of(sys.stderr)

    def update(self, *, step: int, epoch: int, loss: float, accuracy: float, rate: float, eta_seconds: float) -> None:
        """Move the bar; a thread draws it ten times a second."""
        if self._progress:
            share = step / self._progress.tasks[0].total
            more = [f"loss {loss:.4f}", f"accuracy {accuracy:.4f}"]
            if rate:  # not known before the second chunk
                more += [f"ETA {eta_seconds:.0f} s", f"{rate:,.0f} images/s"]
            self._progress.update(self._task, completed=step, said=self._say(epoch, share, more))

    def _say(self, epoch: int, share: float, more: Sequence[str]) -> str:
        """As much as there is room for in one line now, the most important first."""
        said = f"epoch {epoch}/{self._num_epochs} {share:4.0%}"
        width = self._progress.console.width
        room = width - (_BAR_COLUMNS + 1 if width >= _LEAST_COLUMNS else 0) - 1
        for part in (*more, self.placement):
            if part and len(said) + 2 + len(part) <= room:
                said = f"{said}  {part}"
        return said

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def write(self, line: str) -> None:
        """Print one line above the bar."""
        if self._progress:
            text = visible(line)
            self._progress.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            write_line(line)
