"""What is said of a run, for each kind of trouble as a real API server described it (recorded by `tests.k8s.record`)."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from job.contract import ExitCode
from k8s.causes import Object
from k8s.status import RunStatus, judge

_RECORDED = Path(__file__).parent / "recorded"
_NOW = datetime(2026, 11, 24, 4, 57, 30, tzinfo=UTC)
"""When they were recorded."""

# Case, phase, reason, exit code, attempts, how the advice begins.
_TABLE: list[tuple[str, str, str, int | None, int, str]] = [
    ("between-retries", "Retrying", "Unavailable", 69, 1, "repair the store or the network,"),
    ("cancelled", "Stopping", "Deleted", None, 1, ""),
    ("cannot-start", "Failed", "StartError", 128, 1, "rebuild the image"),
    ("claim-missing", "Pending", "Unschedulable", None, 1, "make the PersistentVolumeClaim none, or correct"),
    ("claim-unbound", "Pending", "Unschedulable", None, 1, "no volume can be made: set"),
    ("deadline", "Failed", "DeadlineExceeded", None, 1, "raise activeDeadlineSeconds of the release, then"),
    ("deleted", "Stopping", "Deleted", None, 1, "nothing: the next pod goes on"),
    ("evicted-and-back", "Running", "Running", None, 2, ""),
    ("evicted", "Stopping", "EvictionByEvictionAPI", None, 1, "nothing: the next pod goes on"),
    ("exit-1", "Failed", "UnknownError", 1, 1, "read the log"),
    ("exit-137", "Failed", "Killed", 137, 1, "read the log; out of memory"),
    ("exit-139", "Failed", "Killed", 139, 1, "read the log; out of memory"),
    ("exit-42", "Failed", "UnknownError", 42, 1, "read the log"),
    ("exit-64", "Failed", "BadConfig", 64, 1, "submit again with a right setting,"),
    ("exit-65", "Failed", "IntegrityError", 65, 1, "restore the data; when all checkpoints"),
    ("exit-66", "Failed", "NotFound", 66, 1, "correct data.uri, store.uri or the GPU"),
    ("exit-69", "Failed", "Unavailable", 69, 1, "repair the store or the network,"),
    ("exit-70", "Failed", "TrainingFailed", 70, 1, "submit again with another learning rate"),
    ("exit-73", "Failed", "Conflict", 73, 1, "submit a new run: this id"),
    ("exit-74", "Failed", "Stalled", 74, 1, "look for the stacks in the"),
    ("exit-75", "Failed", "Interrupted", 75, 1, "resume it"),
    ("exit-76", "Failed", "PeerLost", 76, 1, "resume it"),
    ("exit-77", "Failed", "AccessDenied", 77, 1, "correct the Secret or the identity"),
    ("exit-78", "Failed", "GateRefused", 78, 1, "the model is not good enough"),
    ("gated", "Pending", "SchedulingGated", None, 1, "ask who runs the cluster"),
    ("image-name-invalid", "Pending", "InvalidImageName", None, 1, "correct image.* or imagePullSecrets of the"),
    ("image-never-pulled", "Pending", "ErrImageNeverPull", None, 1, "correct image.* or imagePullSecrets of the"),
    ("image-not-found", "Pending", "ImagePullBackOff", None, 1, "correct image.* or imagePullSecrets of the"),
    ("limit-range", "Pending", "LimitRange", None, 0, "change resources of the release to"),
    ("no-cpu", "Pending", "Unschedulable", None, 1, "lower resources.requests (cpu) of the release,"),
    ("no-gpu", "Pending", "Unschedulable", None, 1, "lower resources.requests (nvidia.com/gpu) of the release,"),
    ("no-memory", "Pending", "Unschedulable", None, 1, "lower resources.requests (memory) of the release,"),
    ("no-node-fits", "Pending", "Unschedulable", None, 1, "correct nodeSelector or affinity of the"),
    (
        "no-service-account",
        "Pending",
        "NoServiceAccount",
        None,
        0,
        "make the ServiceAccount, or serviceAccount.create=true",
    ),
    ("out-of-memory", "Failed", "Killed", 137, 1, "read the log; out of memory"),
    ("pod-security", "Pending", "PodSecurity", None, 0, "use the pod settings of the"),
    ("queued", "Suspended", "Queued", None, 0, "nothing: it starts when there is"),
    ("quota", "Pending", "QuotaExceeded", None, 0, "free some of the quota, or"),
    ("root-refused", "Pending", "CreateContainerConfigError", None, 1, "make what it names in this"),
    ("running", "Running", "Running", None, 1, ""),
    ("second-attempt", "Running", "Running", None, 2, ""),
    ("secret-missing", "Pending", "CreateContainerConfigError", None, 1, "make what it names in this"),
    ("succeeded-without-message", "Succeeded", "Completed", 0, 1, ""),
    ("succeeded", "Succeeded", "Completed", 0, 1, ""),
    ("suspended", "Suspended", "Suspended", None, 0, "helm upgrade --set suspend=false; or cancel"),
    ("suspending", "Stopping", "Suspended", None, 1, ""),
    ("volume-missing", "Pending", "FailedMount", None, 1, "make what it names in this"),
]


def read(case: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_RECORDED / f"{case}.json").read_text())
    return content


def judged(content: dict[str, Any], *, now: datetime = _NOW) -> RunStatus:
    return judge(content["job"], content["pods"], events=content["events"], log=content["log"], now=now)


@pytest.mark.parametrize(
    ("case", "phase", "reason", "code", "attempts", "advice"), _TABLE, ids=[row[0] for row in _TABLE]
)
def test_recorded_run_is_judged(
    case: str, phase: str, reason: str, code: int | None, attempts: int, advice: str
) -> None:
    status = judged(read(case))
    assert (status.phase, status.reason, status.exit_code, status.attempts) == (phase, reason, code, attempts)
    assert status.action.startswith(advice)
    assert bool(status.action) == bool(advice)
    assert "\n" not in status.message
    assert status.is_finished == (phase in ("Succeeded", "Failed"))


def test_every_recorded_run_is_in_the_table_and_there_are_at_least_forty() -> None:
    assert {row[0] for row in _TABLE} == {path.stem for path in _RECORDED.glob("*.json")}
    assert len(_TABLE) >= 40


def test_every_exit_code_of_the_contract_has_its_own_word() -> None:
    reasons = {row[0]: row[2] for row in _TABLE}
    codes = [code for code in ExitCode if code != ExitCode.OK]
    assert len({reasons[f"exit-{code.value}"] for code in codes}) == len(codes)


def test_what_is_missing_is_named() -> None:
    assert 'secret "store-keys" not found' in judged(read("secret-missing")).message
    assert "(cpu)" in judged(read("no-cpu")).action
    assert "(nvidia.com/gpu)" in judged(read("no-gpu")).action
    assert "exceeded quota: few" in judged(read("quota")).message


def test_a_run_that_was_killed_says_how_far_it_was() -> None:
    assert "at step 405, epoch 9" in judged(read("out-of-memory")).message


def test_the_kubelet_says_more_about_memory_than_the_exit_code() -> None:
    """A container runtime with cgroup v2 reports OOMKilled; the recorded one only the signal."""
    content = read("out-of-memory")
    state: Object = content["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]
    state["reason"] = "OOMKilled"
    status = judged(content)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    assert "raise resources.limits.memory" in status.action


def test_progress_comes_from_the_log_of_a_running_pod_and_from_the_message_of_one_that_ended() -> None:
    running = judged(read("running"))
    assert (running.step, running.epoch, running.accuracy, running.outcome) == (938, 2, 0.61, "running")
    ended = judged(read("succeeded"))
    assert (ended.step, ended.epoch, ended.accuracy, ended.outcome) == (9380, 20, 0.88, "committed")


def test_a_pod_that_terminates_for_too_long_is_stuck() -> None:
    content = read("deleted")
    due = datetime.fromisoformat(content["pods"][0]["metadata"]["deletionTimestamp"])
    assert judged(content, now=due + timedelta(seconds=60)).reason == "Deleted"
    stuck = judged(content, now=due + timedelta(seconds=180))
    assert stuck.reason == "StuckTerminating"
    assert "kubectl delete node" in stuck.action


def test_a_message_that_is_not_the_jobs_is_ignored() -> None:
    content = read("exit-65")
    content["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "Traceback\n  File"
    status = judged(content)
    assert (status.phase, status.exit_code, status.message) == ("Failed", 65, "exit code 65")


def test_a_failed_run_whose_pods_are_gone_names_the_stored_log() -> None:
    content = read("exit-65")
    status = judged(content | {"pods": []})
    assert (status.phase, status.exit_code) == ("Failed", 1)
    assert "mnist-job logs" in status.action
