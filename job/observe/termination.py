"""The termination message: one JSON object that the kubelet puts into the pod's status.

Rewritten while the run goes on, so that a pod killed for memory still says how far it was.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job import clock
from job.contract import TERMINATION_FIELDS, TERMINATION_MESSAGE_MAX_BYTES, ExitCode

KUBELET_PATH = Path("/dev/termination-log")


@dataclass(slots=True, kw_only=True)
class Status:
    """What is known about this attempt; filled in as the run goes on."""

    run: str = ""
    attempt: str = ""
    outcome: str = "running"
    code: ExitCode | None = None
    reason: str = ""
    step: int = 0
    epoch: int = 0
    accuracy: float | None = None
    promoted: bool | None = None
    champion_accuracy: float | None = None
    """Of the champion after this attempt, on the test split that it was scored on; not part of the message."""
    commit: str | None = None
    seconds: float = 0.0
    started_seconds: float = field(default_factory=clock.monotonic, repr=False)
    path: Path | None = field(default=None, repr=False)
    goodput: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False)
    """Where the time of all attempts went, once the run is open."""
    on_end: Callable[[], None] | None = field(default=None, repr=False)
    """Called once the outcome is known, to log it."""

    def end(self, *, outcome: str, code: ExitCode, reason: str = "") -> None:
        """Record how it ended, write the message for the last time, and log it."""
        self.outcome, self.code, self.reason = outcome, code, reason
        self.write()
        if self.on_end:
            self.on_end()

    def write(self) -> None:
        """Rewrite the message; a path that cannot be written costs the message, never the run."""
        self.seconds = round(clock.monotonic() - self.started_seconds, 3)
        if self.path is None:
            return
        content = {str(name): getattr(self, name) for name in TERMINATION_FIELDS}
        data = json.dumps(content, ensure_ascii=False).encode(errors="replace")
        if len(data) > TERMINATION_MESSAGE_MAX_BYTES:
            excess = len(data) - TERMINATION_MESSAGE_MAX_BYTES
            reason = self.reason.encode(errors="replace")
            content["reason"] = reason[: max(0, len(reason) - 2 * excess - 16)].decode(errors="ignore") + " ..."
            data = json.dumps(content, ensure_ascii=False).encode(errors="replace")[:TERMINATION_MESSAGE_MAX_BYTES]
        with contextlib.suppress(OSError):
            self.path.write_bytes(data)


def choose_path(configured: Path | None) -> Path | None:
    """The configured file, or the one that the kubelet mounts where it is there."""
    return configured or (KUBELET_PATH if KUBELET_PATH.exists() else None)
