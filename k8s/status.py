"""What a run is doing, judged from the objects of the API server alone: phase, reason in words, and what to do.

`judge` is pure: the same Job, pods, events and log lines give the same answer, so that every case is a row in a table of tests.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from job.contract import Event, Field
from k8s.causes import (
    Cause,
    Object,
    container_state,
    event_time,
    explain_end,
    explain_not_made,
    explain_not_started,
    find_condition,
    has_ended,
    termination_message,
)
from k8s.runs import created_pod_names, epochs_of, overrides_of, run_id_of

Phase = Literal["Pending", "Suspended", "Running", "Retrying", "Stopping", "Succeeded", "Failed"]
STUCK_AFTER_SECONDS = 120.0
"""So long after its grace period a pod that still terminates is on a node that does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run as it is now."""

    run: str
    job: str
    phase: Phase
    reason: str
    """One word."""
    message: str
    """The same for people."""
    action: str
    """What to do about it; empty when nothing is to be done."""
    attempts: int
    """Pods that were made for it, as far as the cluster remembers."""
    created: str
    finished: str | None
    settings: str
    """What `submit --set` changed."""
    pod: str | None = None
    """The newest one."""
    exit_code: int | None = None
    outcome: str | None = None
    step: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    accuracy: float | None = None
    eta_seconds: float | None = None
    promoted: bool | None = None
    commit: str | None = None

    @property
    def is_finished(self) -> bool:
        """Nothing more will happen to this Job."""
        return self.phase in ("Succeeded", "Failed")


def judge(
    job: Object, pods: list[Object], *, events: list[Object], log: list[Object], now: datetime | None = None
) -> RunStatus:
    """The status of the run that a Job works on.

    Args:
        pods: of that Job, those that are still there.
        events: of the Job and its pods; may be left out (empty) for a Job that has ended or whose pod runs.
        log: the last log events of the newest pod, for how far it is.
    """
    pods = sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))
    phase, cause = _phase(job, pods, events, now or datetime.now(UTC))
    facts = _facts(job, pods, log)
    code = cause.code if cause.code is not None else facts.pop("exit_code", None)
    facts.pop("exit_code", None)
    return RunStatus(
        run=run_id_of(job),
        job=job["metadata"]["name"],
        phase=phase,
        reason=cause.reason,
        message=cause.message,
        action=cause.action,
        attempts=count_attempts(job, pods, events),
        created=job["metadata"].get("creationTimestamp", ""),
        finished=_finished(job),
        settings=overrides_of(job),
        pod=pods[-1]["metadata"]["name"] if pods else None,
        exit_code=code if phase in ("Succeeded", "Failed", "Retrying") else None,
        epochs=epochs_of(job),
        **facts,
    )


def is_settled(job: Object) -> bool:
    """Whether the Job has ended: what is said of it needs no events."""
    return find_condition(job, "Complete") is not None or find_condition(job, "Failed") is not None


def count_attempts(job: Object, pods: list[Object], events: list[Object]) -> int:
    """Pods that were made: those that are there, those that events tell of, and those that were counted."""
    status = job.get("status", {})
    counted = sum(int(status.get(key) or 0) for key in ("active", "succeeded", "failed"))
    names = {pod["metadata"]["name"] for pod in pods} | created_pod_names(events, job=job["metadata"]["name"])
    return max(counted, len(names))


def _phase(job: Object, pods: list[Object], events: list[Object], now: datetime) -> tuple[Phase, Cause]:
    ended = _judge_end(job, pods)
    if ended:
        return ended
    active = [pod for pod in pods if not has_ended(pod)]
    if job.get("spec", {}).get("suspend"):
        return _suspended(job, active)
    if active:
        return _judge_pod(job, active[-1], pods, events, now)
    return _without_pod(job, pods, events)


def _judge_end(job: Object, pods: list[Object]) -> tuple[Phase, Cause] | None:
    """How the Job ended or is about to; Complete and Failed alone are final."""
    if find_condition(job, "Complete"):
        return "Succeeded", _last_end(pods, code=0) or Cause(reason="Completed", message="done", code=0)
    failed, failing = find_condition(job, "Failed"), find_condition(job, "FailureTarget")
    if failed:
        return "Failed", _explain_failure(job, failed, pods)
    if job["metadata"].get("deletionTimestamp"):
        return "Stopping", Cause(reason="Deleted", message="the Job is being deleted")
    if find_condition(job, "SuccessCriteriaMet"):
        return "Running", _FINISHING
    return ("Stopping", _explain_failure(job, failing, pods)) if failing else None


_FINISHING = Cause(reason="Finishing", message="the pod has ended; the Job is about to be complete")


def _suspended(job: Object, active: list[Object]) -> tuple[Phase, Cause]:
    if active:
        text = "suspended: the pod saves a checkpoint and ends"
        return "Stopping", Cause(reason="Suspended", message=text)
    queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if queue:
        action = "nothing: it starts when there is room (kubectl get workloads)"
        return "Suspended", Cause(reason="Queued", message=f"Kueue's queue {queue} has no room yet", action=action)
    action = "helm upgrade --set suspend=false; or cancel and resume it"
    return "Suspended", Cause(reason="Suspended", message="spec.suspend is true", action=action)


def _judge_pod(
    job: Object, pod: Object, pods: list[Object], events: list[Object], now: datetime
) -> tuple[Phase, Cause]:
    is_first = count_attempts(job, pods, events) <= 1
    state = container_state(pod)
    if pod["metadata"].get("deletionTimestamp"):
        return "Stopping", _explain_stopping(pod, now)
    if pod.get("status", {}).get("phase") == "Unknown" or find_condition(pod, "Ready", status="Unknown"):
        action = "kubectl get nodes; when the node is gone for good: kubectl delete node NODE"
        return "Running", Cause(reason="NodeLost", message="its node does not answer", action=action)
    if state.get("terminated"):
        return ("Running" if state["terminated"].get("exitCode") == 0 else "Retrying"), explain_end(pod)
    if state.get("running"):
        disruption = find_condition(pod, "DisruptionTarget")
        if disruption:
            return "Stopping", explain_end(pod)
        return "Running", _explain_running(pod, pods, is_first=is_first)
    cause = explain_not_started(pod, events)
    return ("Pending" if is_first else "Retrying"), cause


def _explain_running(pod: Object, pods: list[Object], *, is_first: bool) -> Cause:
    if is_first:
        return Cause(reason="Running", message="the first attempt works on it")
    earlier = _last_end(pods)
    text = f"the last one: {earlier.message}" if earlier else "pods before it are gone"
    return Cause(reason="Running", message=f"a further attempt works on it; {text}")


def _explain_stopping(pod: Object, now: datetime) -> Cause:
    cause = explain_end(pod)
    due = _time(pod["metadata"]["deletionTimestamp"])  # the grace period is in it
    if due and (now - due).total_seconds() > STUCK_AFTER_SECONDS:
        action = (
            "its node is gone? then kubectl delete node NODE, or kubectl delete pod POD --force: safe for the results"
        )
        return Cause(reason="StuckTerminating", message="the pod does not end, and nothing replaces it", action=action)
    return Cause(
        reason=cause.reason, message=f"the pod saves a checkpoint and ends: {cause.message}", action=cause.action
    )


def _without_pod(job: Object, pods: list[Object], events: list[Object]) -> tuple[Phase, Cause]:
    failures = int(job.get("status", {}).get("failed") or 0)
    earlier = _last_end(pods)
    not_made = explain_not_made(events, job=job["metadata"]["name"])
    is_retry = bool(pods or failures or created_pod_names(events, job=job["metadata"]["name"]))
    if not_made and (not is_retry or _is_newest_failed_create(events, job)):
        return ("Retrying" if is_retry else "Pending"), not_made
    if earlier and earlier.code == 0:
        return "Running", _FINISHING
    if is_retry:
        limit = int(job.get("spec", {}).get("backoffLimit", 6))
        why = f"{earlier.message}; " if earlier else ""
        text = f"{why}the next pod comes after a pause ({failures} of {limit} retries used)"
        reason = earlier.reason if earlier else "BetweenPods"
        action = earlier.action if earlier else ""
        return "Retrying", Cause(reason=reason, message=text, action=action, code=earlier.code if earlier else None)
    return "Pending", Cause(reason="NoPod", message="no pod has been made yet")


def _is_newest_failed_create(events: list[Object], job: Object) -> bool:
    name = job["metadata"]["name"]
    ours = [event for event in events if event.get("involvedObject", {}).get("name") == name]
    newest = max(ours, key=event_time, default={})
    return newest.get("reason") == "FailedCreate"


def _explain_failure(job: Object, condition: Object, pods: list[Object]) -> Cause:
    reason, said = str(condition.get("reason", "Failed")), str(condition.get("message", ""))
    end = _last_end(pods)
    if reason == "DeadlineExceeded":
        seconds = job.get("spec", {}).get("activeDeadlineSeconds")
        text = f"not done within activeDeadlineSeconds={seconds}; a checkpoint is saved"
        return Cause(reason=reason, message=text, action="raise activeDeadlineSeconds of the release, then resume")
    if end is None:
        action = "read the stored log: mnist-job logs RUN"
        return Cause(reason=reason, message=f"{said}; its pods are gone", action=action, code=1)
    if reason == "BackoffLimitExceeded":
        limit = int(job.get("spec", {}).get("backoffLimit", 6))
        text = f"{end.message}; after {limit} retries, none is left"
        action = "resume it" if end.action.startswith("nothing") else end.action
        return Cause(reason=end.reason, message=text, action=action, code=end.code)
    return end


def _last_end(pods: list[Object], *, code: int | None = None) -> Cause | None:
    """Why the newest pod that has ended did so."""
    causes = [explain_end(pod) for pod in pods if has_ended(pod)]
    return next((cause for cause in reversed(causes) if code is None or cause.code == code), None)


def _facts(job: Object, pods: list[Object], log: list[Object]) -> dict[str, Any]:
    """How far it is: the newest termination message, and the log of a pod that runs."""
    facts: dict[str, Any] = {}
    for pod in pods:
        state = container_state(pod).get("terminated")
        message = termination_message(state) if state else {}
        facts |= {str(key): message[key] for key in _FROM_MESSAGE if message.get(key) is not None}
        if state:
            facts["exit_code"] = int(state.get("exitCode", 0))
    for event in log:
        if event.get(Field.EVENT) in _PROGRESS_EVENTS:
            facts |= {str(key): event[key] for key in _PROGRESS_FIELDS if event.get(key) is not None}
        if event.get(Field.TEST_ACCURACY) is not None:
            facts["accuracy"] = event[Field.TEST_ACCURACY]
    if log and "exit_code" not in facts:
        facts.setdefault("outcome", "running")
    return facts


_FROM_MESSAGE = (Field.OUTCOME, Field.STEP, Field.EPOCH, Field.ACCURACY, Field.PROMOTED, Field.COMMIT)
_PROGRESS_EVENTS = (
    Event.TRAIN_PROGRESS,
    Event.EPOCH_END,
    Event.CHECKPOINT_SAVED,
    Event.CHECKPOINT_RESTORED,
    Event.EVALUATE_END,
)
_PROGRESS_FIELDS = (Field.STEP, Field.EPOCH, Field.ETA_SECONDS)


def _finished(job: Object) -> str | None:
    condition = find_condition(job, "Complete") or find_condition(job, "Failed")
    return str(condition.get("lastTransitionTime", "")) if condition else None


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
