"""What each subcommand prints, on top of `RunClient`."""

import argparse
import json
import sys
import time

from job import streams
from job.contract import ExitCode
from k8s.client import RunClient
from k8s.errors import UsageError
from k8s.logs import Notice
from k8s.status import RunStatus
from k8s.tables import describe, resume_command, to_table


def dispatch(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code.

    Raises:
        ClientError: for `__main__` to report.
    """
    client = RunClient.connect(
        kubeconfig=options.kubeconfig, context=options.context, namespace=options.namespace, release=options.release
    )
    return _COMMANDS[options.command](client, options)


def _submit(client: RunClient, options: argparse.Namespace) -> int:
    if any(setting.startswith("run.id=") for setting in options.settings):
        raise UsageError("run.id: is made of the Job's name; to go on with a run: mnist-k8s resume RUN")
    return _started(client, client.submit(options.settings, promote=options.promote, name=options.name), options)


def _trigger(client: RunClient, options: argparse.Namespace) -> int:
    return _started(client, client.trigger(name=options.name), options)


def _resume(client: RunClient, options: argparse.Namespace) -> int:
    return _started(client, client.resume(options.run, options.settings, name=options.name), options)


def _started(client: RunClient, status: RunStatus, options: argparse.Namespace) -> int:
    if options.output == "table":
        print(f"run {status.run} is submitted as Job {status.job}", flush=True)
    if options.wait:
        return _report([client.wait(status.job, timeout_seconds=options.timeout)], options)
    if options.output == "json":
        _print_json(status)
    return ExitCode.OK


def _list(client: RunClient, options: argparse.Namespace) -> int:
    runs = client.list_runs()
    if options.output == "json":
        print(json.dumps([run.to_dict() for run in runs], indent=2))
    elif runs:
        print(to_table(runs))
    else:
        print(f"no runs in namespace {client.namespace}", file=sys.stderr)
    if options.output == "table":
        sys.stdout.flush()
        for line in client.explain_schedules():
            print(f"mnist-k8s: {line}", file=sys.stderr)
    return ExitCode.OK


def _status(client: RunClient, options: argparse.Namespace) -> int:
    status = client.status(options.run)
    if options.output == "json":
        _print_json(status)
    else:
        print(describe(status))
    return ExitCode.OK


def _logs(client: RunClient, options: argparse.Namespace) -> int:
    log = client.logs(options.run, worker=options.worker, follow=options.follow, timeout_seconds=options.timeout)
    for item in log:
        if isinstance(item, Notice):
            sys.stdout.flush()
            print(f"mnist-k8s: {item.text}", file=sys.stderr, flush=True)
        else:
            streams.pass_on(item.data)
            if options.follow:
                sys.stdout.flush()
    return ExitCode.OK


def _wait(client: RunClient, options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.timeout
    ended = [client.wait(run, timeout_seconds=max(0.0, deadline - time.monotonic())) for run in options.runs]
    return _report(ended, options)


def _cancel(client: RunClient, options: argparse.Namespace) -> int:
    status = client.cancel(options.run, timeout_seconds=options.timeout)
    if options.output == "json":
        _print_json(status)
    elif status.is_finished:
        print(f"run {status.run} has ended already ({status.phase}); nothing to cancel")
    else:
        print(f"run {status.run} is cancelled; what it saved stays in the store; go on: {resume_command(status)}")
    return ExitCode.OK


def _report(ended: list[RunStatus], options: argparse.Namespace) -> int:
    """Say how runs ended, with the code of the first that failed."""
    if options.output == "json":
        print(json.dumps([run.to_dict() for run in ended] if len(ended) > 1 else ended[0].to_dict(), indent=2))
    else:
        print(to_table(ended) if len(ended) > 1 else describe(ended[0]))
    failed = next((run for run in ended if run.phase == "Failed"), None)
    return ExitCode.OK if failed is None else failed.exit_code or ExitCode.UNKNOWN


def _print_json(status: RunStatus) -> None:
    print(json.dumps(status.to_dict(), indent=2))


_COMMANDS = {
    "submit": _submit,
    "trigger": _trigger,
    "resume": _resume,
    "list": _list,
    "status": _status,
    "logs": _logs,
    "wait": _wait,
    "cancel": _cancel,
}
