"""What a person sees on a terminal: a progress bar, event lines above it, and a closing summary."""

import sys
from typing import Any

from job import streams
from job.logs import LogFormat, write_line
from job.texts import visible


class Display:
    """A progress bar on a terminal; nothing at all elsewhere, where events say it."""

    def __init__(self, log_format: LogFormat, *, is_silent: bool = False) -> None:
        self.placement = ""
        """Where the replicas are; empty when there is only one."""
        self._progress: Any = None
        self._task: Any = None
        self._is_shown = log_format == "text" and sys.stdout.isatty() and not is_silent

    def start(self, *, num_steps: int, done_steps: int, num_epochs: int) -> None:
        """Show the bar."""
        if not self._is_shown:
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            *([TextColumn(self.placement, markup=False)] if self.placement else []),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.4f}"),
            TextColumn("{task.fields[rate]:,.0f} images/s  ETA {task.fields[eta]:.0f} s"),
            console=Console(file=streams.steering(sys.stdout)),
            transient=True,
        )
        self._task = self._progress.add_task(
            "train",
            total=num_steps,
            completed=done_steps,
            epoch=1,
            epochs=num_epochs,
            loss=0.0,
            accuracy=0.0,
            rate=0.0,
            eta=0.0,
        )
        self._progress.start()
        # Rich has put itself before both streams, to print above the bar, and obeys colours and links in what it gets there.
        sys.stdout, sys.stderr = streams.front_of(sys.stdout), streams.front_of(sys.stderr)

    def update(self, *, step: int, epoch: int, loss: float, accuracy: float, rate: float, eta_seconds: float) -> None:
        """Move the bar; a thread draws it ten times a second."""
        if self._progress:
            self._progress.update(
                self._task, completed=step, epoch=epoch, loss=loss, accuracy=accuracy, rate=rate, eta=eta_seconds
            )

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
