"""Entry point: one subcommand, one exit code, one way out.

Every error that ends the process ends here: one line on stderr, the termination message, the exit code.
"""

import contextlib
import faulthandler
import os
import resource
import sys
import threading
import traceback
from typing import NoReturn

from job import leave_out_working_folder, streams
from job.contract import ExitCode
from job.errors import JobError, UnavailableError
from job.masking import remember_environment
from job.observe.termination import Status, find_path
from job.signals import StopRequested, StopSignal
from job.texts import stack_of


def main() -> NoReturn:
    """Run the command line of this process and exit; never returns."""
    code: int = ExitCode.UNKNOWN
    try:
        code = _run(sys.argv[1:], stop=StopSignal())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # tearing TensorFlow down takes a second, and a stuck store thread for ever


def _run(arguments: list[str], *, stop: StopSignal) -> int:
    status = Status()
    try:
        try:
            stop.install()  # first of all: as PID 1 the kernel drops SIGTERM until a handler is there
            _prepare()
            return _obey(arguments, stop=stop, status=status)
        except BaseException:
            stop.raise_again()
            raise
        finally:
            stop.ignore()
            if stop.requested:  # what is still to be printed must not wait for ever
                streams.give_up_after(streams.READER_SECONDS)
    except BaseException as error:  # noqa: BLE001 - the last net: a panic of a Rust library is no Exception
        status.stack = "" if isinstance(error, (JobError, StopRequested)) else stack_of(error)
        return _report(status, *_describe(error, is_run=status.on_end is not None))


def _prepare() -> None:
    leave_out_working_folder()
    remember_environment(os.environ, sys.argv)
    streams.protect()
    # A core file would hold the environment and the memory, with all credentials; a soft limit, for `ulimit -c` in own code.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()  # a crash of native code leaves its stacks on stderr
    threading.excepthook = _say_thread_failed


def _obey(arguments: list[str], *, stop: StopSignal, status: Status) -> int:
    """Parse the command line and do what it says; returns the exit code."""
    from job.commands.cli import parse_command_line, split_settings

    if split_settings(arguments)[1][:1] == ["run"]:  # a line that is refused is to be found in the pod's status too
        status.path = find_path(arguments, os.environ)
        status.on_end = lambda: _tell_early_end(arguments, status)
    try:
        line = parse_command_line(arguments)
    except SystemExit:  # argparse after --help
        return _printed()
    with stop.deferred():  # C code whose import was interrupted cannot be imported again, and the way out needs it
        from job.commands.dispatch import PRINTING, dispatch  # after parsing: --help needs none of it

    code = dispatch(line, stop=stop, status=status)
    is_list = line.command == "gc" and not line.options.delete
    return _printed() if code == ExitCode.OK and (is_list or line.command in PRINTING) else code


def _tell_early_end(arguments: list[str], status: Status) -> None:
    """Until `run_command` knows better ways."""
    from job.commands.early_end import tell_early_end

    tell_early_end(arguments, status)


def _printed() -> int:
    """Exit code 0 of a command that was asked for its output alone.

    Raises:
        UnavailableError: the output was lost.
    """
    sys.stdout.flush()
    loss = streams.loss_of(sys.stdout)
    if loss:
        raise UnavailableError(f"stdout: {loss}; what was asked for is not written; send it elsewhere")
    return ExitCode.OK


def _report(status: Status, code: ExitCode, reason: str) -> int:
    """Say why it ended, where people, the log and the pod's status will look."""
    for line in reason.rstrip("\n").split("\n"):
        print(f"mnist-job: error {code.value}: {line}", file=sys.stderr)
    try:
        status.end(outcome="interrupted" if code == ExitCode.INTERRUPTED else "failed", code=code, reason=reason)
    except BaseException:  # noqa: BLE001 - a fault in saying how it ended must not change how it ended
        traceback.print_exc()
    return code


def _describe(error: BaseException, *, is_run: bool = False) -> tuple[ExitCode, str]:
    """Exit code and reason; a traceback on stderr for what nobody raised on purpose."""
    if isinstance(error, StopRequested):
        return ExitCode.INTERRUPTED, f"{error} received{'; start the same run again' if is_run else ''}"
    if isinstance(error, JobError):
        return error.code, str(error)
    reason = type(error).__name__
    with contextlib.suppress(
        Exception
    ):  # an error of the user's own class may not know its own text; no memory is left
        traceback.print_exception(error)
        reason = f"{reason}: {error}"
    is_bug = isinstance(error, AssertionError)  # of ours or of a user's own model: no retry can help
    return ExitCode.TRAINING_FAILED if is_bug else ExitCode.UNKNOWN, reason


def _say_thread_failed(failed: threading.ExceptHookArgs) -> None:
    """A thread died of an error that nobody waits for: what depends on it is seen by the watchdog."""
    from job import logs

    threading.__excepthook__(failed)
    if failed.exc_type is not SystemExit:
        name = failed.thread.name if failed.thread else ""
        stack = stack_of(failed.exc_value) if failed.exc_value else ""
        logs.warn("thread.failed", thread=name, reason=f"{failed.exc_type.__name__}: {failed.exc_value}", stack=stack)


if __name__ == "__main__":
    main()
