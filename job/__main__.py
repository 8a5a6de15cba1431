"""Entry point: one subcommand, one exit code, one way out.

Every error that ends the process ends here: one line on stderr, the termination message, the exit code.
"""

import contextlib
import os
import sys
import traceback
from typing import NoReturn

from job.contract import ExitCode
from job.errors import JobError
from job.observe.termination import Status
from job.signals import StopRequested, StopSignal


def main() -> NoReturn:
    """Run the command line of this process and exit; never returns."""
    stop = StopSignal()
    stop.install()  # first of all: as PID 1 the kernel drops SIGTERM until a handler is there
    code = _run(sys.argv[1:], stop=stop)
    stop.ignore()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):  # its reader has gone, as in `mnist-job runs | head -1`
            stream.flush()
    os._exit(code)  # tearing TensorFlow down takes a second, and a stuck store thread for ever


def _run(arguments: list[str], *, stop: StopSignal) -> int:
    status = Status()
    try:
        from job.commands.cli import parse_command_line

        line = parse_command_line(arguments)
        from job.commands.dispatch import dispatch  # after parsing: --help needs none of it

        return dispatch(line, stop=stop, status=status)
    except SystemExit as leaving:  # argparse after --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except StopRequested as signal:
        stop.ignore()
        return _report(status, ExitCode.INTERRUPTED, f"{signal} received; start the same run again")
    except JobError as error:
        stop.ignore()
        return _report(status, error.code, str(error))
    except Exception as error:  # noqa: BLE001 - the last net
        stop.ignore()
        if isinstance(error, BrokenPipeError) and (not status.run or status.code is not None):
            return ExitCode.OK  # only what was printed is lost
        traceback.print_exc()
        is_bug = isinstance(error, AssertionError)  # of ours or of a user's own model: no retry can help
        code = ExitCode.TRAINING_FAILED if is_bug else ExitCode.UNKNOWN
        return _report(status, code, f"{type(error).__name__}: {error}")


def _report(status: Status, code: ExitCode, reason: str) -> int:
    """Say why it ended, where people, the log and the pod's status will look."""
    for line in reason.splitlines():
        print(f"mnist-job: error {code.value}: {line}", file=sys.stderr)
    try:
        status.end(outcome="interrupted" if code == ExitCode.INTERRUPTED else "failed", code=code, reason=reason)
    except Exception:  # noqa: BLE001 - a fault in saying how it ended must not change how it ended
        traceback.print_exc()
    return code


if __name__ == "__main__":
    main()
