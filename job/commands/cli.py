"""The command line: subcommands and their options. Standard library only, so that `--help` answers at once.

Settings (`--section.field=VALUE`) are set apart before argparse sees the rest; `config.py` reads them.
"""

import argparse
import importlib.resources
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from job import __version__, uris
from job.errors import ConfigError
from job.masking import masked

T = TypeVar("T")

_SETTINGS_HELP = """\
settings:
  --section.field=VALUE   any setting, such as --train.epochs=3 or --store.uri=s3://bucket/prefix;
                          also as environment variable MNIST_TRAIN__EPOCHS=3 or in --config FILE (YAML).
                          All of them: mnist-job run --help
"""


_SECONDS_PER_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MIN_AGE_SECONDS = 3600.0
"""Of garbage: a live attempt may be silent for minutes."""
_MAX_REASON_CHARACTERS = 1000
_MAX_WAIT_SECONDS, _MAX_COUNT_CHARACTERS = 366 * 86400.0, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """A parsed command line."""

    command: str
    """Such as `run` or `data prepare`."""
    options: argparse.Namespace
    settings: list[str]
    """The `--section.field=VALUE` arguments, as given."""


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Parse everything but the values of the settings.

    Raises:
        ConfigError: an unknown command or option.
        SystemExit: after `--help` and `--version`.
    """
    settings, rest = split_settings(arguments)
    options, unknown = _make_parser().parse_known_args(rest)
    if unknown:
        raise ConfigError(_describe_unknown(unknown[0], command=options.command))
    return CommandLine(command=options.command, options=options, settings=settings)


def _describe_unknown(argument: str, *, command: str) -> str:
    if not argument.startswith("-"):
        return f"{argument}: unknown argument; see mnist-job {command} --help"
    from job.config_sources import suggest_flag  # late: importing the schema takes 0.3 s

    name = argument.partition("=")[0]  # the value may be a secret
    return f"{name}: unknown option{suggest_flag(argument)}; see mnist-job {command} --help"


class _Parser(argparse.ArgumentParser):
    """An argparse parser that leaves by our own way out, and takes no option twice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class _Once(argparse.Action):
    """Stores the value of an option; argparse itself would drop the first of two without a word."""

    _is_given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: object, option: str | None = None
    ) -> None:
        if self._is_given:
            parser.error(f"{option}: must be given once, received it twice; the second is {value!s}")
        self._is_given = True
        setattr(namespace, self.dest, value)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take apart the settings, each with its value, and what argparse is to see; checks nothing."""
    settings: list[str] = []
    rest: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, separator, _ = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            rest.append(argument)
            continue
        settings.append(argument)
        if not separator and remaining and not remaining[0].startswith("--"):
            settings.append(remaining.pop(0))
    return settings, rest


def _make_parser() -> _Parser:
    parser = _Parser(
        prog="mnist-job",
        description="Train an image classifier, and publish a whole, verified model or nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mnist-job {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    _add(commands, "run", "one attempt at a run: train, evaluate, export, commit, gate", is_run=True)

    verify = _add(commands, "verify", "check a published model: every hash, then load it and predict")
    which = verify.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="ID", help="the run to verify")
    which.add_argument("--champion", metavar="NAME", help="the model whose champion, and serving layout, to verify")
    verify.add_argument("--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait so long until it is there")

    fetch = _add(
        commands, "fetch", "bring the champion, verified, into DIR/VERSION/ by one rename, for TensorFlow Serving"
    )
    fetch.add_argument("--to", type=_path, required=True, metavar="DIR", help="local folder")
    fetch.add_argument(
        "--every", type=_interval, metavar="SECONDS", help="look again and again; errors are only logged"
    )
    fetch.add_argument("--keep", type=_count, default=3, metavar="N", help="how many of the newest versions stay (3)")

    _add_run_commands(commands)

    data = _group(commands, "data", "bring or check training data")
    prepare = _add(
        data, "prepare", "copy the four .gz files, verified, to where data.source=idx reads them", prefix="data "
    )
    prepare.add_argument("--to", type=_place, required=True, metavar="URI", help="folder or store URI to write to")
    prepare.add_argument(
        "--from", dest="source", type=_path, metavar="DIR", help="folder that holds the files; else they are downloaded"
    )
    check = _add(data, "check", "say quickly whether the configured data can be had", prefix="data ")
    check.add_argument(
        "--timeout", type=_seconds, default=4.0, metavar="SECONDS", help="how long to wait for the network (4)"
    )

    store = _group(commands, "store", "check the store")
    _add(store, "check", "prove that a second create-only write is refused", prefix="store ")

    gc = _add(
        commands, "gc", "find what no result reaches, such as left-overs of killed attempts; delete it on request"
    )
    gc.add_argument(
        "--older-than", type=_age, default=7 * 86400.0, metavar="AGE", help="such as 7d, 12h or 90m; at least 1h (7d)"
    )
    gc.add_argument("--delete", action="store_true", help="delete it; else it is only listed")

    config = _group(commands, "config", "the settings")
    _add(config, "show", "the effective settings, as YAML, with where each came from", prefix="config ")
    _add(config, "schema", "the settings as JSON Schema", prefix="config ")
    return parser


def _add_run_commands(commands: "argparse._SubParsersAction[_Parser]") -> None:
    """Those that look at the runs of a store, or move its champion among them."""
    runs = _add(
        commands,
        "runs",
        "table of the runs in the store, by start: state, times, exit code, accuracy, verdict, who is champion",
    )
    runs.add_argument("--all", action="store_true", help="also those that retention removed")
    runs.add_argument("--last", type=_count, metavar="N", help="only those that started last")
    _add_output(runs)
    show = _add(
        commands,
        "show",
        "one run on a page: state, times, scores, gate, settings, how to go on; with -o json COMMIT, gate, when it was champion",
    )
    show.add_argument("run", metavar="RUN", help="the run to show")
    _add_output(show, default="text")

    report = _add(commands, "report", "the report of a committed run, made again from the store: one page of HTML")
    which = report.add_mutually_exclusive_group(required=True)
    which.add_argument("run", nargs="?", metavar="RUN", help="the run to report on")
    which.add_argument(
        "--index", action="store_true", help="instead, write index.html of the model again, in the store"
    )
    report.add_argument("--to", type=_path, metavar="FILE", help="where to write the report; else report.html")

    _add_logs(commands)

    promote = _add(commands, "promote", "make a committed run the champion, when the gate lets it")
    promote.add_argument("run", metavar="RUN", help="the run to promote")
    promote.add_argument("--force", action="store_true", help="past the gate; recorded for ever")
    again = _add(commands, "reproduce", "train again from a COMMIT, and say whether the digests agree")
    again.add_argument("run", metavar="RUN", help="the run to reproduce")
    again.add_argument(
        "--to", type=_place, metavar="URI", help="folder or store URI for the new run; else a temporary folder"
    )
    back = _add(commands, "rollback", "make the champion before the champion again, as a new version")
    back.add_argument("--to", metavar="RUN", help="an earlier champion; else the one before")
    for by_hand in (promote, back):
        by_hand.add_argument("--why", type=_reason, default="", metavar="TEXT", help="reason, recorded for ever")


def _add_logs(commands: "argparse._SubParsersAction[_Parser]") -> None:
    stored = _add(commands, "logs", "the stored log of a run, all attempts in order, one JSON object a line")
    stored.add_argument("run", metavar="RUN", help="the run whose log to print")
    stored.add_argument("--attempt", type=_beginning, metavar="ID", help="only this attempt, or those that begin so")
    stored.add_argument(
        "--level", choices=("info", "warning", "error"), help="only lines of this level, and worse ones"
    )
    stored.add_argument(
        "--event", type=_beginning, metavar="NAME", help="only events of this name; `checkpoint.`: that begin so"
    )
    stored.add_argument("-f", "--follow", action="store_true", help="also what comes, until the run has ended")
    stored.add_argument(
        "-o", "--output", choices=("json", "text"), default="json", help="lines as they are stored, or sentences (json)"
    )


def _add(
    commands: "argparse._SubParsersAction[_Parser]", name: str, text: str, *, prefix: str = "", is_run: bool = False
) -> _Parser:
    """Add one subcommand with the options that all of them have."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=None if is_run else _SETTINGS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not is_run,
    )
    if is_run:
        parser.add_argument("-h", "--help", action=_RunHelp, nargs=0, help="show this help and exit")
    parser.add_argument("--config", type=_path, metavar="FILE", help="YAML file with settings")
    parser.set_defaults(command=prefix + name)
    return parser


def _group(
    commands: "argparse._SubParsersAction[_Parser]", name: str, text: str
) -> "argparse._SubParsersAction[_Parser]":
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)


def _path(text: str) -> Path:
    return _parsed(uris.parse_path, text)


def _place(text: str) -> str:
    return _parsed(uris.check_place, text)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, received {uris.shown(text)}") from error


def _reason(text: str) -> str:
    if masked(text) != text:
        raise argparse.ArgumentTypeError(f"must hold no credentials, as it is recorded, received {uris.shown(text)}")
    if len(text) > _MAX_REASON_CHARACTERS:
        raise argparse.ArgumentTypeError(f"must have {_MAX_REASON_CHARACTERS} characters at most, received {len(text)}")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, received {uris.shown(text)}")
    if value > _MAX_WAIT_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be at most {_MAX_WAIT_SECONDS:.0f} seconds, received {uris.shown(text)}"
        )
    return value


def _beginning(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _interval(text: str) -> float:
    seconds = _seconds(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds, received 0")
    return seconds


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text[:_MAX_COUNT_CHARACTERS]) > 0):
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, received {uris.shown(text)}")
    if len(text) > _MAX_COUNT_CHARACTERS:
        raise argparse.ArgumentTypeError(
            f"must have at most {_MAX_COUNT_CHARACTERS} digits, received {uris.shown(text)}"
        )
    return int(text)


def _age(text: str) -> float:
    try:
        seconds = float(text[:-1]) * _SECONDS_PER_UNIT[text[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    if not _MIN_AGE_SECONDS <= seconds < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be an age of at least 1h, such as 7d, 12h or 90m, received {uris.shown(text)}"
        )
    return seconds


def _add_output(parser: _Parser, *, default: str = "table") -> None:
    parser.add_argument(
        "-o", "--output", choices=(default, "json"), default=default, help=f"form of the output ({default})"
    )


class _RunHelp(argparse.Action):
    """`run --help` with every setting, from a file made of the schema: importing the schema takes 0.3 s."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.format_help())
        print(importlib.resources.files("job").joinpath("settings.txt").read_text(encoding="utf-8"), end="")
        parser.exit()
