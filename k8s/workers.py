"""The workers of a Job, and what each of them is doing, judged from its own pods.

A Job of several workers is Indexed: one pod of each index at a time. Index 0 is the chief, which alone writes to the store; its
pods are the attempts of the run. A Job of one worker is the same with index 0 alone. Pure functions; `status.py` makes a run's
status of it.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from job.contract import ExitCode
from k8s.causes import (
    Cause,
    container_state,
    event_time,
    explain_not_made,
    explain_not_started,
    find_condition,
    has_ended,
)
from k8s.ends import explain_end
from k8s.runs import created_pod_names
from k8s.shapes import Object, parse_count, parse_time

Phase = Literal["Pending", "Suspended", "Running", "Retrying", "Stopping", "Succeeded", "Failed"]
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
STUCK_AFTER_SECONDS = 120.0
"""So long after its grace period a pod that still terminates is on a node that does not answer."""
FINISHING = Cause(reason="Finishing", message="the pod has ended; the Job is about to be complete", code=0)
FOLLOWS = (ExitCode.INTERRUPTED.word, ExitCode.PEER_LOST.word)
"""Reasons of a worker that ended because of another one."""

_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 10.0, 600.0
"""Before the pod after the first failure, and at most."""
_MAX_WORKERS = 256
_FAILURES = "batch.kubernetes.io/job-index-failure-count"
_IGNORED_FAILURES = "batch.kubernetes.io/job-index-ignored-failure-count"


def num_workers(job: Object) -> int:
    """How many pods a Job, or the template of one, trains with: 256 at most, four times as many as `cluster.workers` may say."""
    spec = job.get("spec", {})
    return min(_MAX_WORKERS, int(spec.get("completions") or 1)) if spec.get("completionMode") == "Indexed" else 1


def index_of(pod: Object) -> int:
    """Which worker a pod is."""
    metadata = pod["metadata"]
    text = str({**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}.get(INDEX_LABEL, ""))
    return parse_count(text) or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker of a Job, with what is known of it."""

    job: Object
    index: int
    pods: list[Object]
    """Its own, oldest first."""
    all_pods: list[Object]
    """Of all workers, oldest first."""
    events: list[Object]
    """Of the Job and its pods."""

    @property
    def is_alone(self) -> bool:
        """Whether it is the only worker of its Job."""
        return num_workers(self.job) == 1

    @property
    def active(self) -> Object | None:
        """Its newest pod that has not ended."""
        return next((pod for pod in reversed(self.pods) if not has_ended(pod)), None)

    @property
    def attempts(self) -> int:
        """Pods that were made: those that are there, those that events tell of, and those that were counted."""
        names = {pod["metadata"]["name"] for pod in self.pods} | self._names_in_events()
        if self.is_alone:
            status = self.job.get("status", {})
            counted = sum(int(status.get(key) or 0) for key in ("active", "succeeded", "failed"))
        else:
            counted = max((_count(pod, _FAILURES) + _count(pod, _IGNORED_FAILURES) + 1 for pod in self.pods), default=0)
        return max(counted, len(names))

    @property
    def failures(self) -> int:
        """How many of its retries are used."""
        if self.is_alone:
            return int(self.job.get("status", {}).get("failed") or 0)
        if not self.pods:
            return 0
        newest = self.pods[-1]
        return _count(newest, _FAILURES) + (1 if has_ended(newest) and _is_counted(newest) else 0)

    @property
    def max_failures(self) -> int:
        """How many retries it has."""
        key = "backoffLimit" if self.is_alone else "backoffLimitPerIndex"
        return int(self.job.get("spec", {}).get(key, 6))

    @property
    def was_made(self) -> bool:
        """Whether it has had a pod, there now or not."""
        return bool(self.pods or self.failures or self._names_in_events())

    def _names_in_events(self) -> set[str]:
        name = self.job["metadata"]["name"]
        names = created_pod_names(self.events, job=name)
        return names if self.is_alone else {each for each in names if each.startswith(f"{name}-{self.index}-")}


def workers_of(job: Object, pods: list[Object], events: list[Object]) -> list[Worker]:
    """All workers of a Job, the chief first."""
    pods = sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))
    total = num_workers(job)
    return [
        Worker(
            job=job,
            index=index,
            pods=pods if total == 1 else [pod for pod in pods if index_of(pod) == index],
            all_pods=pods,
            events=events,
        )
        for index in range(total)
    ]


def judge_worker(worker: Worker, now: datetime) -> tuple[Phase, Cause]:
    """What a worker of a Job that goes on is doing."""
    pod = worker.active
    return _without_pod(worker, now) if pod is None else _judge_pod(worker, pod, now)


def explain_last_end(pods: list[Object], *, is_alone: bool) -> Cause | None:
    """Why the last attempt ended: of several workers, by the end that the others follow from, with the worker's name."""
    ended = [pod for pod in pods if has_ended(pod)]
    if not ended:
        return None
    if is_alone:
        return explain_end(ended[-1])
    last = max(ended, key=_ended_at)
    newest = {index_of(pod): pod for pod in ended}.values()
    # What ended before the last one was even made belongs to an attempt before.
    together = [pod for pod in newest if _ended_at(pod) >= str(last["metadata"].get("creationTimestamp", ""))]
    first = min(together, key=lambda pod: (_is_consequence(pod), _ended_at(pod)))
    return name_worker(explain_end(first), index_of(first))


def name_worker(cause: Cause, index: int) -> Cause:
    """The same for people who know only that one of several workers has ended."""
    action = cause.action
    if index and action.startswith("read the log"):
        action = action.replace("read the log", f"read the log (mnist-k8s logs RUN --worker {index})", 1)
    return replace(cause, message=f"worker {index} ended: {cause.message}", action=action)


def _is_consequence(pod: Object) -> int:
    """0: it ended by itself; 1: it was stopped; 2: it was told to stop; 3: it lost another; 4: it was done."""
    if find_condition(pod, "DisruptionTarget") or pod["metadata"].get("deletionTimestamp"):
        return 1
    ranks: dict[int | None, int] = {ExitCode.INTERRUPTED.value: 2, ExitCode.PEER_LOST.value: 3, ExitCode.OK.value: 4}
    return ranks.get(explain_end(pod).code, 0)


def _ended_at(pod: Object) -> str:
    terminated = container_state(pod).get("terminated") or {}
    disrupted = find_condition(pod, "DisruptionTarget") or {}
    return str(
        terminated.get("finishedAt")
        or disrupted.get("lastTransitionTime")
        or pod["metadata"].get("creationTimestamp", "")
    )


def _is_counted(pod: Object) -> bool:
    """Whether the end of a pod uses up a retry: the chart's podFailurePolicy ignores these two."""
    return find_condition(pod, "DisruptionTarget") is None and explain_end(pod).code != ExitCode.INTERRUPTED


def _count(pod: Object, annotation: str) -> int:
    return parse_count(str((pod["metadata"].get("annotations") or {}).get(annotation, ""))) or 0


def _judge_pod(worker: Worker, pod: Object, now: datetime) -> tuple[Phase, Cause]:
    is_first = worker.attempts <= 1
    state = container_state(pod)
    if pod["metadata"].get("deletionTimestamp"):
        return "Stopping", _explain_stopping(worker, pod, now)
    if pod.get("status", {}).get("phase") == "Unknown" or find_condition(pod, "Ready", status="Unknown"):
        action = "kubectl get nodes; when the node is gone for good: kubectl delete node NODE"
        return "Running", Cause(reason="NodeLost", message="its node does not answer", action=action)
    if state.get("terminated"):
        return ("Running" if state["terminated"].get("exitCode") == 0 else "Retrying"), explain_end(pod)
    if state.get("running"):
        if find_condition(pod, "DisruptionTarget"):
            return "Stopping", explain_end(pod)
        return "Running", _explain_running(worker, is_first=is_first)
    cause = explain_not_started(pod, worker.events)
    return ("Pending" if is_first else "Retrying"), cause


def _explain_running(worker: Worker, *, is_first: bool) -> Cause:
    if is_first:
        return Cause(reason="Running", message="the first attempt works on it")
    earlier = explain_last_end(worker.all_pods, is_alone=worker.is_alone)
    text = f"the last one: {earlier.message}" if earlier else "pods before it are gone"
    return Cause(reason="Running", message=f"a further attempt works on it; {text}")


def _explain_stopping(worker: Worker, pod: Object, now: datetime) -> Cause:
    cause = explain_end(pod)
    due = parse_time(pod["metadata"]["deletionTimestamp"])  # the grace period is in it
    if due and (now - due).total_seconds() > STUCK_AFTER_SECONDS:
        action = (
            "its node is gone? then kubectl delete node NODE, or kubectl delete pod POD --force: safe for the results"
        )
        return Cause(reason="StuckTerminating", message="the pod does not end, and nothing replaces it", action=action)
    if worker.is_alone:
        return replace(cause, message=f"the pod saves a checkpoint and ends: {cause.message}", code=None)
    return replace(cause, message=f"{cause.message}; worker 0 saves a checkpoint, and all end", code=None)


def _without_pod(worker: Worker, now: datetime) -> tuple[Phase, Cause]:
    earlier = next((explain_end(pod) for pod in reversed(worker.pods) if has_ended(pod)), None)
    not_made = explain_not_made(worker.events, job=worker.job["metadata"]["name"])
    if not_made and (not worker.was_made or _is_newest_failed_create(worker)):
        return ("Retrying" if worker.was_made else "Pending"), not_made
    if earlier and earlier.code == 0:
        return "Running", FINISHING
    if not worker.was_made:
        return "Pending", Cause(reason="NoPod", message="no pod has been made yet")
    text = _announce_next(worker, now)
    if earlier or worker.is_alone:
        text += f" ({worker.failures} of {worker.max_failures} retries used)"
    if earlier is None:
        return "Retrying", Cause(reason="BetweenPods", message=text)
    action = earlier.action.replace(", then resume", "; the next attempt then goes on")
    return "Retrying", replace(earlier, message=f"{earlier.message}; {text}", action=action)


def _announce_next(worker: Worker, now: datetime) -> str:
    """When the Job controller makes the next pod: 10 s after the first failure, twice as long after each next one, 600 s at most.

    As in Kubernetes 1.37 (pkg/controller/job/backoff_utils.go). Evicted pods lengthen the pause too, though they use no retry.
    """
    ended = [pod for pod in worker.pods if has_ended(pod)]
    since = parse_time(_ended_at(ended[-1])) if ended else None
    attempt = worker.attempts + 1
    if since is None:
        return f"attempt {attempt} comes after a pause"
    if worker.is_alone:
        failures = max(worker.failures, len(ended))
    else:
        failures = _count(ended[-1], _FAILURES) + _count(ended[-1], _IGNORED_FAILURES) + 1
    pause = min(_MAX_PAUSE_SECONDS, _PAUSE_SECONDS * 2.0 ** min(failures - 1, 10))
    left = min(pause, pause - (now - since).total_seconds())
    if left <= 0:
        return f"attempt {attempt} is about to start"
    return f"waits {left:.0f} s before attempt {attempt}"


def _is_newest_failed_create(worker: Worker) -> bool:
    name = worker.job["metadata"]["name"]
    ours = [event for event in worker.events if event.get("involvedObject", {}).get("name") == name]
    newest = max(ours, key=event_time, default={})
    return newest.get("reason") == "FailedCreate"
