"""What a run is doing, judged from the objects of the API server alone: phase, reason in words, and what to do.

`judge` is pure: the same Job, pods, events and log lines give the same answer, so that every case is a row in a table of tests.
"""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from job.contract import Event, Field
from job.texts import one_line
from k8s.causes import (
    Cause,
    container_state,
    exit_code_of,
    explain_gone,
    find_condition,
    has_ended,
    termination_message,
)
from k8s.ends import explain_end, verdict_of
from k8s.runs import epochs_of, may_promote, overrides_of, run_id_of
from k8s.shapes import Object
from k8s.workers import FINISHING, FOLLOWS, Phase, Worker, explain_last_end, judge_worker, name_worker, workers_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One of several workers as it is now; worker 0 is the chief."""

    index: int
    pod: str | None
    """Its newest one."""
    phase: Phase
    reason: str
    message: str
    action: str
    node: str | None
    attempts: int
    """Pods that were made for it."""
    exit_code: int | None


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
    """Pods that were made for it, as far as the cluster remembers; of several workers, those of the chief."""
    created: str
    finished: str | None
    settings: str
    """What `submit --set` changed."""
    may_promote: bool = True
    """Whether its settings let it become the champion."""
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
    verdict: str | None = None
    """Of the gate: promoted, same, refused; "not promoted" where a run of an older version says no more."""
    commit: str | None = None
    workers: tuple[WorkerStatus, ...] = ()
    """Empty for a run of one worker."""

    @property
    def is_finished(self) -> bool:
        """Nothing more will happen to this Job."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def num_running(self) -> int:
        """How many of several workers run."""
        return sum(1 for worker in self.workers if worker.phase == "Running" and not worker.action)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a run of one worker has no `workers`."""
        content = asdict(self)
        if not self.workers:
            del content["workers"]
        return content


def judge(
    job: Object, pods: list[Object], *, events: list[Object], log: list[Object], now: datetime | None = None
) -> RunStatus:
    """The status of the run that a Job works on.

    Args:
        pods: of that Job, those that are still there.
        events: of the Job and its pods; may be left out (empty) for a Job that has ended or whose pod runs.
        log: the last log events of the newest pod, for how far it is.
    """
    now = now or datetime.now(UTC)
    workers = workers_of(job, pods, events)
    chief = workers[0]
    judged = [judge_worker(worker, now) for worker in workers]
    phase, cause = _phase(job, workers, judged)
    each_status = [_worker_status(job, *each, phase) for each in zip(workers, judged, strict=True)]
    facts = _facts(chief.pods, log)
    code = cause.code if cause.code is not None else facts.pop("exit_code", None)
    facts.pop("exit_code", None)
    return RunStatus(
        run=run_id_of(job),
        job=job["metadata"]["name"],
        phase=phase,
        reason=cause.reason,
        message=cause.message,
        action=cause.action,
        attempts=chief.attempts,
        created=job["metadata"].get("creationTimestamp", ""),
        finished=_finished(job),
        settings=overrides_of(job),
        may_promote=may_promote(job),
        pod=chief.pods[-1]["metadata"]["name"] if chief.pods else None,
        exit_code=code if phase in ("Succeeded", "Failed", "Retrying") else None,
        epochs=epochs_of(job),
        workers=() if chief.is_alone else tuple(each_status),
        **facts,
    )


def is_settled(job: Object) -> bool:
    """Whether the Job has ended: what is said of it needs no events."""
    return find_condition(job, "Complete") is not None or find_condition(job, "Failed") is not None


def _phase(job: Object, workers: list[Worker], judged: list[tuple[Phase, Cause]]) -> tuple[Phase, Cause]:
    ended = _judge_end(job, workers[0])
    if ended:
        return ended
    if job.get("spec", {}).get("suspend"):
        return _suspended(job, workers)
    return judged[0] if len(workers) == 1 else _decide(workers, judged)


def _judge_end(job: Object, chief: Worker) -> tuple[Phase, Cause] | None:
    """How the Job ended or is about to; Complete and Failed alone are final."""
    if find_condition(job, "Complete"):
        ends = [explain_end(pod) for pod in reversed(chief.pods) if has_ended(pod)]
        done = next((end for end in ends if end.code == 0), None)
        return "Succeeded", done or Cause(reason="Completed", message="done", code=0)
    failed, failing = find_condition(job, "Failed"), find_condition(job, "FailureTarget")
    if failed:
        return "Failed", _explain_failure(job, failed, chief)
    if job["metadata"].get("deletionTimestamp"):
        return "Stopping", Cause(reason="Deleted", message="the Job is being deleted")
    if find_condition(job, "SuccessCriteriaMet"):
        return "Running", FINISHING if chief.is_alone else _STOPPING_THE_OTHERS
    return ("Stopping", _explain_failure(job, failing, chief)) if failing else None


_STOPPING_THE_OTHERS = replace(FINISHING, message="worker 0 has committed; the other workers are being stopped")


def _suspended(job: Object, workers: list[Worker]) -> tuple[Phase, Cause]:
    if any(worker.active for worker in workers):
        end = "the pod saves a checkpoint and ends" if len(workers) == 1 else "worker 0 saves a checkpoint, and all end"
        text = f"suspended: {end}"
        return "Stopping", Cause(reason="Suspended", message=text)
    queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if queue:
        action = "nothing: it starts when there is such a queue with room (kubectl describe workloads)"
        return "Suspended", Cause(reason="Queued", message=f"waits in Kueue's queue {one_line(queue)}", action=action)
    action = "helm upgrade --reset-then-reuse-values --set suspend=false; or cancel and resume it"
    return "Suspended", Cause(reason="Suspended", message="spec.suspend is true", action=action)


def _decide(workers: list[Worker], judged: list[tuple[Phase, Cause]]) -> tuple[Phase, Cause]:
    """What several workers make of their run: it trains only while all of them run, so the one in the most trouble decides."""
    chief_phase, chief_cause = judged[0]
    if chief_cause.code == 0:
        return chief_phase, chief_cause
    troubled = [
        (worker, phase, cause)
        for worker, (phase, cause) in zip(workers, judged, strict=True)
        if (phase != "Running" or cause.action) and cause.code != 0
    ]
    if not troubled:
        return chief_phase, chief_cause
    worker, phase, cause = min(troubled, key=lambda each: (_weight(each[2]), each[0].index))
    if phase == "Pending" and workers[0].attempts > 1:
        phase = "Retrying"
    return phase, _with_worker(cause, worker, phase)


def _weight(cause: Cause) -> tuple[int, bool]:
    """The smaller, the more it tells: what a person can repair comes first, what follows from another worker's end last."""
    helps_itself = 2 if not cause.action else 1 if cause.action.startswith("nothing") else 0
    return helps_itself, cause.reason in FOLLOWS


def _with_worker(cause: Cause, worker: Worker, phase: Phase) -> Cause:
    if cause.code is not None:
        return name_worker(cause, worker.index)
    if phase in ("Pending", "Retrying"):
        return replace(cause, message=f"worker {worker.index} is {phase} and the others wait for it: {cause.message}")
    return replace(cause, message=f"worker {worker.index} is {phase}: {cause.message}")


_STOPPED_WITH_THE_JOB = Cause(reason="Stopped", message="it is stopped with the Job")


def _worker_status(job: Object, worker: Worker, judged: tuple[Phase, Cause], run_phase: Phase) -> WorkerStatus:
    phase, cause = judged if worker.active else _without_active_pod(job, worker, judged, run_phase)
    if cause.reason == "Deleted" and _stops_its_pods(job):
        cause = _STOPPED_WITH_THE_JOB
    newest = worker.pods[-1] if worker.pods else {}
    return WorkerStatus(
        index=worker.index,
        pod=newest["metadata"]["name"] if newest else None,
        phase="Succeeded" if phase == "Running" and cause.code == 0 else phase,
        reason=cause.reason,
        message=cause.message,
        action=cause.action,
        node=newest.get("spec", {}).get("nodeName"),
        attempts=worker.attempts,
        exit_code=cause.code,
    )


def _stops_its_pods(job: Object) -> bool:
    """Whether the Job controller deletes the pods, and not a person one of them."""
    is_ending = any(find_condition(job, kind) for kind in ("SuccessCriteriaMet", "FailureTarget", "Failed"))
    return is_ending or bool(job["metadata"].get("deletionTimestamp") or job.get("spec", {}).get("suspend"))


def _without_active_pod(
    job: Object, worker: Worker, judged: tuple[Phase, Cause], run_phase: Phase
) -> tuple[Phase, Cause]:
    """The same for a worker that gets no further pod, because its Job has ended, is about to, or is suspended."""
    end = explain_end(worker.pods[-1]) if worker.pods else None
    if find_condition(job, "Complete") or find_condition(job, "SuccessCriteriaMet"):
        committed = Cause(reason="Stopped", message="worker 0 has committed", code=end.code if end else None)
        return "Succeeded", end if end and end.code == 0 else committed
    if find_condition(job, "Failed") or find_condition(job, "FailureTarget"):
        return "Failed", end or _STOPPED_WITH_THE_JOB
    if run_phase in ("Suspended", "Stopping") and job.get("spec", {}).get("suspend"):
        return run_phase, end or Cause(reason="Suspended", message="it has no pod")
    return judged


def _explain_failure(job: Object, condition: Object, chief: Worker) -> Cause:
    reason, said = (
        one_line(condition.get("reason", "Failed"), limit=128),
        one_line(condition.get("message", ""), limit=300),
    )
    end = explain_last_end(chief.all_pods, is_alone=chief.is_alone)
    if reason == "DeadlineExceeded":
        return _explain_deadline(job, end, chief)
    if end is None:
        action = "read the stored log: mnist-job logs RUN"
        return Cause(reason=reason, message=f"{said}; its pods are gone", action=action, code=1)
    if reason in ("BackoffLimitExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"):
        text = f"{end.message}; after {chief.max_failures} retries, none is left"
        action = "resume it" if end.action.startswith("nothing") else end.action
        return Cause(reason=end.reason, message=text, action=action, code=end.code)
    return end


def _explain_deadline(job: Object, end: Cause | None, chief: Worker) -> Cause:
    """The Job's deadline, which counts over all attempts, is over: what it was doing meanwhile, as far as is known."""
    reason, seconds = "DeadlineExceeded", job.get("spec", {}).get("activeDeadlineSeconds")
    text, more = (
        f"not done within activeDeadlineSeconds={seconds}",
        "raise activeDeadlineSeconds of the release, then resume",
    )
    if chief.active and container_state(chief.active).get("running"):
        return Cause(reason=reason, message=f"{text}; the pod saves a checkpoint and ends", action=more)
    if end:
        action = more if end.action.startswith("nothing") else end.action
        return Cause(reason=reason, message=f"{text}; the last attempt: {end.message}", action=action)
    trouble = explain_gone(chief.events)
    if trouble:
        return Cause(
            reason=reason,
            message=f"{text}; no container ran: {trouble.message}",
            action=f"{trouble.action}; then resume",
        )
    return Cause(reason=reason, message=f"{text}; what it had saved by then stays in the store", action=more)


def _facts(pods: list[Object], log: list[Object]) -> dict[str, Any]:
    """How far it is: the newest termination message, and the log of a pod that runs."""
    facts: dict[str, Any] = {}
    for pod in pods:
        state = container_state(pod).get("terminated")
        message = termination_message(state) if state else {}
        facts |= {str(key): message[key] for key in _FROM_MESSAGE if message.get(key) is not None}
        if verdict := verdict_of(message):
            facts["verdict"] = verdict
        if state:
            facts["exit_code"] = exit_code_of(state)
    for event in log:
        if event.get(Field.EVENT) == Event.GATE_DECIDED and (verdict := verdict_of(event)):
            facts["verdict"] = verdict
        if event.get(Field.EVENT) in _PROGRESS_EVENTS:
            facts |= {str(key): event[key] for key in _PROGRESS_FIELDS if event.get(key) is not None}
        for name in (Field.VAL_ACCURACY, Field.TEST_ACCURACY):  # an epoch has one of them
            if event.get(name) is not None:
                facts["accuracy"] = event[name]
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
