"""Which function each subcommand is. Imports it late: some commands need little."""

import importlib
import os
import sys
from collections.abc import Callable

from job import ambient, logs
from job.commands.cli import CommandLine
from job.config_sources import LoadedConfig, load_config
from job.observe.termination import Status
from job.signals import StopSignal

_COMMANDS = {
    "verify": "verify:verify",
    "promote": "champion:promote",
    "rollback": "champion:rollback",
    "fetch": "champion:fetch",
    "reproduce": "reproduce:reproduce",
    "runs": "runs:list_runs",
    "show": "show:show",
    "report": "runs:report",
    "logs": "logs:print_log",
    "data prepare": "data:prepare",
    "data check": "data:check",
    "store check": "store:check",
    "gc": "store:collect_garbage",
    "config show": "settings:show",
    "config schema": "settings:print_schema",
}
"""Subcommand -> `module:function` in this room."""
_COMPUTING = ("run", "verify", "promote", "reproduce")
"""What they say depends on the bits that a model gives."""

PRINTING = frozenset({"runs", "show", "logs", "config show", "config schema"})
"""Subcommands that are asked for what they print alone: when that is lost, they have failed."""


def dispatch(line: CommandLine, *, stop: StopSignal, status: Status) -> int:
    """Read the settings and run the command; returns the exit code.

    Raises:
        JobError, StopRequested: for `__main__` to report.
    """
    ambient.take_over(os.environ)
    loaded = load_config(line.settings, config_file=line.options.config)
    if line.command in _COMPUTING:
        ambient.check(os.environ)
    with ambient.own_temporary_folder():
        return _run(line, loaded, stop=stop, status=status)


def _run(line: CommandLine, loaded: LoadedConfig, *, stop: StopSignal, status: Status) -> int:
    if line.command == "run":
        with stop.deferred():  # as in `__main__`: numpy is here
            from job.commands.run import run_command

        return run_command(loaded, stop=stop, status=status)
    logs.configure(logs.choose_format(loaded.config.observe.log_format, stream=sys.stderr), write=_to_stderr)
    return _find_command(line.command)(line, loaded)


def _find_command(name: str) -> Callable[[CommandLine, LoadedConfig], int]:
    module, _, function = _COMMANDS[name].partition(":")
    found: Callable[[CommandLine, LoadedConfig], int] = getattr(
        importlib.import_module(f"job.commands.{module}"), function
    )
    return found


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
