"""The command line of `mnist-k8s`. Standard library only, so that `--help` answers at once."""

import argparse
import shlex
from collections.abc import Sequence
from typing import NoReturn

from job import __version__
from k8s.errors import UsageError

_DAY_SECONDS = 86_400.0
_MAX_SECONDS = 366 * _DAY_SECONDS
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_SECONDS}


def parse_command_line(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UsageError: an unknown command or option.
        SystemExit: after `--help` and `--version`.
    """
    parser = _make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = options.command
        hint = _suggest(unknown) if "settings" in options else ""
        raise UsageError(f"unrecognized arguments: {shlex.join(unknown)}{hint}; see {parser.prog} {command} --help")
    return options


def _suggest(unknown: Sequence[str]) -> str:
    """How to give settings that were given without `--set`: `--train.epochs=3`, `--epochs 3`, `train.epochs=3`."""
    given, remaining = [], list(unknown)
    while remaining:
        argument = remaining.pop(0)
        if argument.startswith("--") and "=" not in argument:
            has_value = bool(remaining) and not remaining[0].startswith("--")
            argument += "=" + (remaining.pop(0) if has_value else "VALUE")
        given.append(_nearest(argument))
    text = " ".join(f"--set {shlex.quote(setting)}" for setting in given if setting)
    return f"; did you mean {text}?" if text else ""


def _nearest(setting: str) -> str:
    """`section.field=value` with the name that is nearest; empty when none is near, or no value is given."""
    from job.config_sources import nearest_settings  # takes long to import, and --help needs none of it

    name, separator, value = setting.partition("=")
    near = nearest_settings(name) if separator else []
    return f"{near[0]}={value}" if near else ""


class _Parser(argparse.ArgumentParser):
    """An argparse parser that leaves by our own way out."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="mnist-k8s",
        description="Start, watch and stop training runs of an installed release of the chart mnist-train.",
        epilog="RUN is a run's id or the name of its Job. Exit codes are those of mnist-job: docs/client.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mnist-k8s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    submit = _add(commands, "submit", "start a run with its own settings, from the release's template")
    _add_settings(submit)
    submit.add_argument("--promote", action="store_true", help="the run may become the champion; else promotion is off")
    _add_new_job(submit)

    trigger = _add(commands, "trigger", "start now what the schedule would start next")
    _add_new_job(trigger)

    resume = _add(
        commands, "resume", "a new Job for a run that failed or was cancelled: it goes on from its checkpoint"
    )
    resume.add_argument("run", metavar="RUN", help="the run to go on with")
    _add_settings(resume)
    _add_new_job(resume)

    _add(commands, "list", "table of the runs: phase, progress, accuracy, age, attempts")

    status = _add(commands, "status", "what a run is doing, why it is pending or has failed, and what to do")
    status.add_argument("run", metavar="RUN", help="the run to look at")

    logs = _add(commands, "logs", "the log of a run's pods, oldest first", has_output=False)
    logs.add_argument("run", metavar="RUN", help="the run whose log to print")
    logs.add_argument(
        "-f", "--follow", action="store_true", help="wait for the pod, and for replacements, until the end"
    )
    logs.add_argument(
        "--worker",
        type=int,
        default=0,
        metavar="N",
        help="of several workers, the one whose log to print (0, the chief)",
    )
    _add_timeout(logs, default=_DAY_SECONDS, text="follow for so long at most (1d)")

    wait = _add(commands, "wait", "wait until runs have ended; the exit code is that of the first that failed")
    wait.add_argument("runs", metavar="RUN", nargs="+", help="the runs to wait for")
    _add_timeout(wait, default=_DAY_SECONDS, text="wait for so long at most (1d)")

    cancel = _add(commands, "cancel", "stop a run: a checkpoint is saved, then its Job is deleted")
    cancel.add_argument("run", metavar="RUN", help="the run to stop")
    _add_timeout(cancel, default=None, text="wait so long for the pod's end (its grace period and a minute)")
    return parser


def _add(commands: "argparse._SubParsersAction[_Parser]", name: str, text: str, *, has_output: bool = True) -> _Parser:
    """Add one subcommand with the options that all of them have."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="else KUBECONFIG, ~/.kube/config, or the pod's own"
    )
    where.add_argument("--context", default="", metavar="NAME", help="of the kubeconfig (its current one)")
    where.add_argument("-n", "--namespace", default="", metavar="NAME", help="that of the context, or default")
    where.add_argument("--release", default="", metavar="NAME", help="the Helm release, where there are several")
    if has_output:
        parser.add_argument(
            "-o", "--output", choices=("table", "json"), default="table", help="form of the output (table)"
        )
    parser.set_defaults(command=name)
    return parser


def _add_settings(parser: _Parser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=_setting,
        metavar="SECTION.FIELD=VALUE",
        help="such as train.learning_rate=0.5; may be repeated (all of them: mnist-job run --help)",
    )


def _add_new_job(parser: _Parser) -> None:
    parser.add_argument("--name", default="", metavar="NAME", help="of the new Job (made up)")
    parser.add_argument("--wait", action="store_true", help="wait until it has ended")
    _add_timeout(parser, default=_DAY_SECONDS, text="with --wait: for so long at most (1d)")


def _add_timeout(parser: _Parser, *, default: float | None, text: str) -> None:
    parser.add_argument("--timeout", type=_seconds, default=default, metavar="TIME", help=text)


def _setting(text: str) -> str:
    name, separator, _ = text.partition("=")
    if not separator or "." not in name or name.startswith("-"):
        near = _nearest(text)
        hint = f"; did you mean {shlex.quote(near)}?" if near else ""
        raise argparse.ArgumentTypeError(f"must be section.field=value, received {text!r}{hint}")
    return text


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be a time such as 90, 90s, 10m or 2h, at most 366d, received {text[:80]!r}"
        )
    return seconds
