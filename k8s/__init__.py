"""The Kubernetes client: never imports TensorFlow, and of `job` only what docs/architecture.md names.

__main__.py    entry point: one way out, exit codes
cli.py         commands and options, standard library only
commands.py    what each command prints
client.py      RunClient: submit, list, status, logs, wait, cancel, resume, trigger
submit.py      a Job from the template, sent so that it is never made twice
status.py      what a run is doing, judged from objects alone
workers.py     what each of its workers is doing
causes.py      why a pod does not start, or was not made; what to do
ends.py        why a pod ended; what to do
schedules.py   why a schedule has not started a run
logs.py        following a log through dropped connections and replaced pods
watch.py       waiting: the list is the truth, a watch is a hint
shapes.py      what is read of the objects: fields, types, times
api.py         the requests, tried again until answered
connection.py  kubeconfig, context, namespace, or the pod's ServiceAccount
errors.py      HTTP status -> typed error with what to do
runs.py        run, release and settings of a Job
progress.py    how far, from the end of a log
tables.py      text for people
"""

from k8s.client import RunClient
from k8s.errors import ClientError
from k8s.status import RunStatus, WorkerStatus

__all__ = ["ClientError", "RunClient", "RunStatus", "WorkerStatus"]
