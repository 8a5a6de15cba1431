"""The logs command: the stored log of a run as it is, chosen, as sentences, and as it comes."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from job import clock, contract, streams
from job.commands.cli import CommandLine
from job.commands.lookup import checked_run_id, configured_store
from job.config_sources import LoadedConfig
from job.contract import ExitCode
from job.errors import IntegrityError, NotFoundError, UnavailableError
from job.events import say
from job.observe.stored_logs import StoredSegment, read_stored_log
from job.records import parse_object
from job.runs import read
from job.runs.state import read_end
from job.store.store import Store
from job.texts import one_line, visible

_POLL_SECONDS = 5.0
_LAST_SECONDS = 120.0
"""How long a run with a result may take to say its end: between COMMIT and the last segment come the gate, the layout of
models/, retention and the report. Only a process that was killed there is waited for in vain."""
_SILENT_SECONDS = 3600.0
_FINAL = [code.value for code in ExitCode if code.again not in ("yes", "may help")]
"""Exit codes after which no other attempt goes on."""
_LEVELS = ("debug", "info", "warning", "error", "critical")


def print_log(line: CommandLine, loaded: LoadedConfig) -> int:
    """The stored log of a run: byte for byte into a file or pipe, made visible on a terminal.

    Raises:
        NotFoundError: it has none, or none of that attempt.
        UnavailableError: nothing has come for an hour with --follow.
    """
    store, run_id = configured_store(loaded), checked_run_id(line.options.run)
    printer = _Printer(line.options)
    follower = _Follower(store, run_id)
    for segment in follower.segments() if line.options.follow else read_stored_log(store, run_id):
        printer.take(segment)
        if streams.reader_is_gone(sys.stdout):
            break
    if not printer.num_bytes:
        raise NotFoundError(f"run {run_id} has no stored log{printer.of_attempt} in {store.uri}; see mnist-job runs")
    if follower.end:
        print(follower.end, file=sys.stderr)
    return ExitCode.OK


class _Printer:
    """Prints what is asked for of each segment."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.num_bytes = 0
        """Of the attempts that were asked for, printed or not."""
        self._attempt, self._event, self._output = options.attempt or "", options.event or "", options.output
        self._levels = _LEVELS[_LEVELS.index(options.level) if options.level else 0 :]
        self._takes_all = not (options.event or options.level)

    @property
    def of_attempt(self) -> str:
        """For an error: which attempt was asked for."""
        return f" of attempt {visible(self._attempt)}" if self._attempt else ""

    def take(self, segment: StoredSegment) -> None:
        """Print what is asked for of it."""
        if not segment.attempt.startswith(self._attempt):
            return
        self.num_bytes += len(segment.data)
        if self._takes_all and self._output == "json":
            streams.pass_on(segment.data)
        else:
            for line in segment.data.splitlines(keepends=True):
                self._take_line(line)
        sys.stdout.flush()

    def _take_line(self, line: bytes) -> None:
        fields = _parse(line)
        if not (self._is_wanted(fields) if fields else self._takes_all):
            return
        if self._output == "json":
            streams.pass_on(line)
        else:
            print(_to_text(fields) if fields else visible(line.decode(errors="backslashreplace").rstrip("\n")))

    def _is_wanted(self, fields: dict[str, Any]) -> bool:
        event, level = str(fields.get("event")), fields.get("level")
        is_of_group = self._event.endswith(".") and event.startswith(self._event)
        is_named = not self._event or event == self._event or is_of_group
        return is_named and (level in self._levels or level not in _LEVELS)


def _parse(line: bytes) -> dict[str, Any] | None:
    """None for what is no line of ours."""
    try:
        return parse_object(line, name="a line of the log", are_all_finite=False)
    except IntegrityError:
        return None


def _to_text(fields: dict[str, Any]) -> str:
    """Time, level and sentence; below it the stack of an error."""
    event = str(fields.get("event"))
    words = fields.get("message") or say(event, fields)  # older versions stored no message
    stack = fields.get("stack") or fields.get("stacks") or ""
    lines = stack.split("\n") if isinstance(stack, str) else map(str, stack if isinstance(stack, list) else ())
    head = f"{one_line(fields.get('time', ''))} {one_line(fields.get('level', '')).upper():<7} {one_line(words)}"
    return "\n".join([head, *(f"    {visible(text)}" for text in lines if text)])


class _Follower:
    """Reads what comes until the run has ended."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.end = ""
        """Why nothing more comes."""
        self._store, self._run = store, run_id
        self._over_since: float | None = None

    def segments(self) -> Iterator[StoredSegment]:
        """Each segment once.

        Raises:
            NotFoundError: the store has nothing of this run.
            UnavailableError: no segment has come for an hour.
        """
        if not self._store.list_objects(contract.run_prefix(self._run)):
            raise NotFoundError(f"run {self._run} is not in {self._store.uri}; see mnist-job runs")
        seen: set[str] = set()
        heard = clock.monotonic()
        while not self.end:
            end = self._look_for_end()  # first, so that its last lines are among those that are read now
            for segment in read_stored_log(self._store, self._run, seen=seen):
                heard = clock.monotonic()
                yield segment
            self.end = end or self._look_for_result()
            if not self.end:
                _check_silence(self._run, clock.monotonic() - heard)
                clock.sleep(_POLL_SECONDS)

    def _look_for_end(self) -> str:
        """What the end of the newest attempt means for the run; empty while another attempt may go on."""
        end = read_end(self._store, self._store.list_objects(contract.run_prefix(self._run)))
        if end is None or end.code not in _FINAL:
            return ""
        return f"mnist-job: run {self._run} ended as {one_line(end.outcome, limit=40)} with exit code {end.code}"

    def _look_for_result(self) -> str:
        """For a process that was killed between its commit and its last line."""
        if not read.is_over(self._store, self._run):
            return ""
        now = clock.monotonic()
        self._over_since = self._over_since or now
        return f"mnist-job: run {self._run} has a result" if now - self._over_since >= _LAST_SECONDS else ""


def _check_silence(run_id: str, seconds: float) -> None:
    if seconds > _SILENT_SECONDS:
        raise UnavailableError(
            f"run {run_id} has stored no line for {_SILENT_SECONDS / 3600:.0f} h; look at its process"
        )
