"""Entry point of `mnist-k8s`: one subcommand, one exit code, one way out. Every error that ends the process ends here."""

import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

from job.contract import ExitCode
from k8s.errors import ClientError


def main() -> NoReturn:
    """Run the command line of this process and exit; never returns."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has gone, as in `mnist-k8s logs RUN | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    logging.basicConfig(format="mnist-k8s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the same, said once by us
    try:
        from k8s.cli import parse_command_line

        options = parse_command_line(arguments)
        from k8s.commands import dispatch  # after parsing: --help needs none of it

        return dispatch(options)
    except SystemExit as leaving:  # argparse after --help
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        return _report(ExitCode.INTERRUPTED, "interrupted; runs in the cluster go on")
    except ClientError as error:
        return _report(error.code, str(error))
    except Exception as error:  # noqa: BLE001 - the last net
        if isinstance(error, BrokenPipeError):
            return ExitCode.OK
        traceback.print_exc()
        return _report(ExitCode.UNKNOWN, f"{type(error).__name__}: {error}")


def _report(code: ExitCode, reason: str) -> int:
    for line in reason.splitlines():
        print(f"mnist-k8s: error {code.value}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
