"""The termination message: one JSON object that the kubelet puts into the pod's status.

Rewritten while the run goes on, so that a pod killed for memory still says how far it was.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job import clock
from job.contract import ENV_PREFIX, TERMINATION_FIELDS, TERMINATION_MESSAGE_MAX_BYTES, ExitCode
from job.masking import masked
from job.texts import visible
from job.uris import parse_path

KUBELET_PATH = Path("/dev/termination-log")
_FIELD = "termination_log"
_FLAG, _VARIABLE = f"--observe.{_FIELD}", f"{ENV_PREFIX}OBSERVE__{_FIELD.upper()}"


OUTCOMES = ("committed", "already_committed", "skipped", "retired", "assisted", "interrupted", "stalled", "failed")
"""How an attempt can end."""


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
    verdict: str | None = None
    """Of the gate."""
    promoted: bool | None = None
    commit: str | None = None
    seconds: float = 0.0
    started_seconds: float = field(default_factory=clock.elapsed, repr=False)
    path: Path | None = field(default=None, repr=False)
    goodput: Callable[[], Mapping[str, Any]] | None = field(default=None, repr=False)
    """Where the time of all attempts went, once the run is open."""
    on_end: Callable[[], None] | None = field(default=None, repr=False)
    """Called once the outcome is known, to log it."""
    stack: str = field(default="", repr=False)
    """Of an error that nobody raised on purpose, for the log; not part of the message."""
    failure: str = field(default="", repr=False)
    """Why the message could not be written."""

    def end(self, *, outcome: str, code: ExitCode, reason: str = "") -> None:
        """Record how it ended, write the message for the last time, and log it."""
        assert outcome in OUTCOMES
        self.outcome, self.code, self.reason = outcome, code, reason
        self.write()
        if self.on_end:
            self.on_end()

    def write(self) -> None:
        """Rewrite the message; a path that cannot be written costs the message, never the run."""
        self.seconds = round(clock.elapsed() - self.started_seconds, 3)
        if self.path is None:
            return
        content = {str(name): getattr(self, name) for name in TERMINATION_FIELDS} | {"reason": masked(self.reason)}
        data = _to_json(content)
        if len(data) > TERMINATION_MESSAGE_MAX_BYTES:
            excess = len(data) - TERMINATION_MESSAGE_MAX_BYTES
            reason = content["reason"].encode(errors="replace")
            content["reason"] = reason[: max(0, len(reason) - 2 * excess - 16)].decode(errors="ignore") + " ..."
            data = _to_json(content)[:TERMINATION_MESSAGE_MAX_BYTES]
        try:
            _write_at_once(self.path, data)
        except (OSError, ValueError) as error:  # ValueError: such as a NUL in the path
            self.failure = str(error)


def _to_json(content: Mapping[str, Any]) -> bytes:
    """As kubectl prints it: readable in every script, and with nothing that steers a terminal."""
    return visible(json.dumps(content, ensure_ascii=False).encode(errors="replace").decode()).encode()


def _write_at_once(path: Path, data: bytes) -> None:
    """The kubelet mounts the file itself, so that none can take its place. A pipe that nobody reads is refused."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o666)
    with open(descriptor, "wb") as file:
        file.write(data)


def choose_path(configured: Path | None) -> Path | None:
    """The configured file, or the one that the kubelet mounts where it is there."""
    return configured or (KUBELET_PATH if KUBELET_PATH.exists() else None)


def find_path(arguments: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """Where the message goes, as far as a command line can tell that may be refused for anything else.

    Args:
        arguments: of `mnist-job`, as given. The last flag counts, then the variable, then the file of `--config`.
    """
    in_files = (path for file in config_files(arguments) for path in _in_yaml(file))
    in_environment = (value for name, value in environ.items() if name.upper() == _VARIABLE)
    *_, found = "", *in_files, *in_environment, *_values_of(_FLAG, arguments)
    return choose_path(_to_path(found))


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Those that a command line names, which may be refused for naming two."""
    return [*filter(None, map(_to_path, _values_of("--config", arguments)))]


def _to_path(text: str) -> Path | None:
    """None when it is no path of this machine: then the settings are refused, and say why."""
    try:
        return parse_path(text)
    except ValueError:
        return None


def _values_of(name: str, arguments: Sequence[str]) -> Iterator[str]:
    """What is given with a flag: `--name=VALUE` or `--name VALUE`."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == name and not following.startswith("--"):
            yield following
        elif argument.startswith(f"{name}="):
            yield argument.removeprefix(f"{name}=")


def _in_yaml(path: Path) -> Iterator[str]:
    """Values of the field in a file that may be YAML up to some line only; what is in a pipe is left to its one reader."""
    import yaml

    from job.strict_yaml import MAX_CHARACTERS

    try:
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            events = yaml.parse(file.read(MAX_CHARACTERS))
        for event, following in itertools.pairwise(events):
            if getattr(event, "value", None) == _FIELD and isinstance(following, yaml.ScalarEvent):
                yield following.value
    except (OSError, ValueError, yaml.YAMLError):
        return
