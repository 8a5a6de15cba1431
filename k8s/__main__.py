"""Entry point of `mnist-k8s`: one subcommand, one exit code, one way out. Every error that ends the process ends here."""

import contextlib
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

from job import leave_out_working_folder, streams
from job.contract import ExitCode
from job.masking import remember_environment
from k8s.errors import ClientError

_PRINTING = frozenset({"list", "status", "logs"})
"""Subcommands that are asked for what they print alone: when that is lost, they have failed."""


def main() -> NoReturn:
    """Run the command line of this process and exit; never returns."""
    code: int = ExitCode.UNKNOWN
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        _remove_keys()
        os._exit(code)


def _remove_keys() -> None:
    """Those of a kubeconfig that was read; a command that read none imports nothing for it."""
    connection = sys.modules.get("k8s.connection")
    if connection is not None:
        connection.remove_keys()


def _run(arguments: list[str]) -> int:
    try:
        _prepare()
        return _obey(arguments)
    except KeyboardInterrupt:
        return _report(ExitCode.INTERRUPTED, "interrupted; runs in the cluster go on")
    except ClientError as error:
        return _report(error.code, str(error))
    except BaseException as error:  # noqa: BLE001 - the last net
        reason = type(error).__name__
        with contextlib.suppress(Exception):
            traceback.print_exception(error)
            reason = f"{reason}: {error}"
        return _report(ExitCode.UNKNOWN, reason)


def _prepare() -> None:
    leave_out_working_folder()
    remember_environment(os.environ, sys.argv)
    streams.protect()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # set by `nohup`
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    logging.basicConfig(format="mnist-k8s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the same, said once by us


def _obey(arguments: list[str]) -> int:
    """Parse the command line and do what it says; returns the exit code."""
    from k8s.cli import parse_command_line

    try:
        options = parse_command_line(arguments)
    except SystemExit:  # argparse after --help
        return _printed()
    from k8s.commands import dispatch  # after parsing: --help needs none of it

    code = dispatch(options)
    return _printed() if code == ExitCode.OK and options.command in _PRINTING else code


def _printed() -> int:
    """How a command ends that was asked for its output alone."""
    sys.stdout.flush()
    loss = streams.loss_of(sys.stdout)
    if loss:
        return _report(ExitCode.UNAVAILABLE, f"stdout: {loss}; what was asked for is not written; send it elsewhere")
    return ExitCode.OK


def _report(code: ExitCode, reason: str) -> int:
    for line in reason.rstrip("\n").split("\n"):
        print(f"mnist-k8s: error {code.value}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
