"""What is said of a run, for each kind of trouble as a real API server described it (recorded by `tests.k8s.record`)."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from job.contract import ExitCode
from k8s.causes import explain_not_started
from k8s.ends import explain_end, verdict_of
from k8s.shapes import Object
from k8s.status import RunStatus, _facts, judge
from k8s.tables import describe, to_table

_RECORDED = Path(__file__).parent / "recorded"
_NOW = datetime(2026, 11, 24, 4, 57, 30, tzinfo=UTC)
"""When they were recorded."""

# Case, phase, reason, exit code, attempts, how the advice begins.
_RESUME = "helm upgrade --reset-then-reuse-values --set suspend=false; or cancel"
_TABLE: list[tuple[str, str, str, int | None, int, str]] = [
    ("between-retries", "Retrying", "Unavailable", 69, 1, "repair the store or the network;"),
    ("between-retries-later", "Retrying", "Unavailable", 69, 3, "repair the store or the network;"),
    ("cancelled", "Stopping", "Deleted", None, 1, ""),
    ("cannot-start", "Failed", "StartError", 128, 1, "rebuild the image"),
    ("claim-missing", "Pending", "Unschedulable", None, 1, "make the PersistentVolumeClaim none, or correct"),
    ("claim-unbound", "Pending", "Unschedulable", None, 1, "no volume can be made: set"),
    ("config-missing", "Pending", "CreateContainerConfigError", None, 1, "make what it names in this"),
    ("deadline", "Failed", "DeadlineExceeded", None, 1, "raise activeDeadlineSeconds of the release, then"),
    ("deadline-between-retries", "Failed", "DeadlineExceeded", 69, 2, "repair the store or the network,"),
    ("deadline-of-the-pod", "Failed", "DeadlineExceeded", 137, 1, "raise activeDeadlineSeconds of the pod"),
    ("deadline-stopping", "Stopping", "DeadlineExceeded", None, 1, "raise activeDeadlineSeconds of the release, then"),
    ("deadline-unscheduled", "Failed", "DeadlineExceeded", None, 1, "correct nodeSelector or affinity of the"),
    ("deleted", "Stopping", "Deleted", None, 1, "nothing: the next pod goes on"),
    ("disk-limit", "Failed", "Evicted", 137, 1, "raise resources.limits.ephemeral-storage of the release"),
    ("evicted-and-back", "Running", "Running", None, 2, ""),
    ("evicted", "Stopping", "EvictionByEvictionAPI", None, 1, "nothing: the next pod goes on"),
    ("evicted-and-killed", "Retrying", "EvictionByEvictionAPI", 137, 1, "nothing: the next pod goes on"),
    ("exit-1", "Failed", "UnknownError", 1, 1, "read the log"),
    ("exit-132", "Failed", "Killed", 132, 1, "choose nodes with a newer processor"),
    ("exit-134", "Failed", "Killed", 134, 1, "read the log: it ends with the stacks"),
    ("exit-135", "Failed", "Killed", 135, 1, "look for a full disk on the node"),
    ("exit-137", "Failed", "Killed", 137, 1, "look for SystemOOM in kubectl describe node e2e-control-plane"),
    ("exit-139", "Failed", "Killed", 139, 1, "read the log: it ends with the stacks"),
    ("exit-143", "Failed", "Killed", 143, 1, "resume it"),
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
    (
        "key-missing",
        "Pending",
        "CreateContainerConfigError",
        None,
        1,
        "add the key AWS_SECRET_ACCESS_KEY to the Secret half",
    ),
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
    ("out-of-memory", "Failed", "OOMKilled", 137, 1, "raise resources.limits.memory of the release"),
    ("pod-security", "Pending", "PodSecurity", None, 0, "use the pod settings of the"),
    ("queued", "Suspended", "Queued", None, 0, "nothing: it starts when there is"),
    ("quota", "Pending", "QuotaExceeded", None, 0, "free some of the quota, or"),
    (
        "root-asked",
        "Pending",
        "CreateContainerConfigError",
        None,
        1,
        "set runAsUser of the release to a number above 0",
    ),
    (
        "root-refused",
        "Pending",
        "CreateContainerConfigError",
        None,
        1,
        "set runAsUser of the release to a number above 0",
    ),
    ("running", "Running", "Running", None, 1, ""),
    ("second-attempt", "Running", "Running", None, 2, ""),
    ("secret-missing", "Pending", "CreateContainerConfigError", None, 1, "make what it names in this"),
    ("succeeded-promoted", "Succeeded", "Completed", 0, 1, ""),
    ("succeeded-refused", "Succeeded", "Completed", 0, 1, ""),
    ("succeeded-without-message", "Succeeded", "Completed", 0, 1, ""),
    ("succeeded", "Succeeded", "Completed", 0, 1, ""),
    ("suspended", "Suspended", "Suspended", None, 0, _RESUME),
    ("suspending", "Stopping", "Suspended", None, 1, ""),
    ("volume-limit", "Failed", "Evicted", 137, 1, "raise the sizeLimit of that volume in extraVolumes"),
    ("volume-missing", "Pending", "FailedMount", None, 1, "make what it names in this"),
    ("workers-evicted-and-back", "Running", "Running", None, 2, ""),
    ("workers-evicted", "Retrying", "EvictionByEvictionAPI", 75, 1, "nothing: the next pod goes on"),
    ("workers-evicting", "Stopping", "EvictionByEvictionAPI", None, 1, "nothing: the next pod goes on"),
    ("workers-exit-64", "Failed", "BadConfig", 64, 1, "submit again with a right setting,"),
    ("workers-finishing", "Running", "Finishing", None, 1, ""),
    ("workers-killed-and-back", "Running", "Running", None, 2, ""),
    ("workers-killed", "Retrying", "Killed", 137, 1, "look for SystemOOM in kubectl describe node"),
    ("workers-no-retries-left", "Failed", "Unavailable", 69, 1, "repair the store or the network,"),
    ("workers-one-killed", "Retrying", "Killed", 137, 1, "look for SystemOOM in kubectl describe node"),
    ("workers-pending", "Pending", "Unschedulable", None, 1, "lower resources.requests (cpu) of the release,"),
    ("workers-quota", "Pending", "QuotaExceeded", None, 1, "free some of the quota, or"),
    ("workers-running", "Running", "Running", None, 1, ""),
    ("workers-succeeded", "Succeeded", "Completed", 0, 1, ""),
    ("workers-suspended", "Suspended", "Suspended", None, 0, _RESUME),
    ("workers-suspending", "Stopping", "Suspended", None, 1, ""),
]

# Case, then for each worker, the chief first: phase, reason, exit code, attempts.
_WORKERS: dict[str, list[tuple[str, str, int | None, int]]] = {
    "workers-evicted-and-back": [("Running", "Running", None, 2), ("Running", "Running", None, 2)],
    "workers-evicted": [("Retrying", "Interrupted", 75, 1), ("Retrying", "EvictionByEvictionAPI", 75, 1)],
    "workers-evicting": [("Running", "Running", None, 1), ("Stopping", "EvictionByEvictionAPI", None, 1)],
    "workers-exit-64": [("Failed", "Stopped", None, 1), ("Failed", "BadConfig", 64, 1)],
    "workers-finishing": [("Succeeded", "Completed", 0, 1), ("Stopping", "Stopped", None, 1)],
    "workers-killed-and-back": [("Running", "Running", None, 2), ("Running", "Running", None, 2)],
    "workers-killed": [("Retrying", "PeerLost", 76, 1), ("Retrying", "Killed", 137, 1)],
    "workers-no-retries-left": [("Failed", "Stopped", None, 1), ("Failed", "Unavailable", 69, 1)],
    "workers-one-killed": [("Running", "Running", None, 1), ("Retrying", "Killed", 137, 1)],
    "workers-pending": [("Running", "Running", None, 1), ("Pending", "Unschedulable", None, 1)],
    "workers-quota": [("Running", "Running", None, 1), ("Pending", "QuotaExceeded", None, 0)],
    "workers-running": [("Running", "Running", None, 1), ("Running", "Running", None, 1)],
    "workers-succeeded": [("Succeeded", "Completed", 0, 1), ("Succeeded", "Stopped", None, 1)],
    "workers-suspended": [("Suspended", "Suspended", None, 0), ("Suspended", "Suspended", None, 0)],
    "workers-suspending": [("Stopping", "Stopped", None, 1), ("Stopping", "Stopped", None, 1)],
}


def read(case: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_RECORDED / f"{case}.json").read_text())
    return content


def judged(content: dict[str, Any], *, now: datetime = _NOW) -> RunStatus:
    return judge(content["job"], content["pods"], events=content["events"], log=content["log"], now=now)


def test_an_init_container_whose_image_cannot_be_pulled_is_named() -> None:
    """The training waits for it (PodInitializing), which says nothing."""
    content = read("image-not-found")
    [pod] = content["pods"]
    state = pod["status"]["containerStatuses"][0]["state"]
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "PodInitializing"}}
    ready = {"name": "fetch", "state": {"terminated": {"exitCode": 0}}}
    pod["status"]["initContainerStatuses"] = [ready, {"name": "side", "state": state}]
    pod["spec"]["initContainers"] = [
        {"name": "fetch", "image": "busybox:1"},
        {"name": "side", "image": "registry.invalid/side:1"},
    ]
    status = judged(content)
    assert (status.phase, status.reason) == ("Pending", "ImagePullBackOff")
    assert status.message.startswith("the image registry.invalid/side:1 cannot be pulled: ")
    assert status.action.startswith("correct initContainers or imagePullSecrets of the release")


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
    assert set(_WORKERS) == {row[0] for row in _TABLE if row[0].startswith("workers-")}


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


def test_each_way_of_being_killed_is_told_from_the_others() -> None:
    """The limit of the container, the node, an eviction that took too long, a deletion; and the signals of crashes."""
    assert judged(read("out-of-memory")).message.startswith("out of memory (the limit is 24Mi) at step 405, epoch 9")
    assert "from outside: not by its memory limit" in judged(read("exit-137")).message
    late = judged(read("evicted-and-killed")).message
    assert (
        "it was evicted, as when a node is drained, and killed: it had not ended after its grace period of 3 s" in late
    )
    content = read("exit-137")
    content["pods"][0]["metadata"]["deletionTimestamp"] = "2026-11-24T04:56:30Z"
    deleted = explain_end(content["pods"][0])
    assert "it was deleted, and had not ended after its grace period of 30 s" in deleted.message
    assert "killed with SIGSEGV at step 469, epoch 1: native code crashed" in judged(read("exit-139")).message
    assert "the image's digest and the node's name" in judged(read("exit-139")).action


def test_a_pod_that_took_more_than_it_may_is_not_said_to_go_on_by_itself() -> None:
    """The kubelet ends it with 137 and without the condition of an eviction; each next pod would do the same."""
    assert (
        "Pod ephemeral local storage usage exceeds the total limit of containers 8Mi."
        in judged(read("disk-limit")).message
    )
    assert 'Usage of EmptyDir volume "v" exceeds the limit "8Mi".' in judged(read("volume-limit")).message
    content = read("disk-limit")
    said = "The node was low on resource: memory. Container train was using 5Gi, request is 2Gi"
    content["pods"][0]["status"]["message"] = said
    assert judged(content).action.startswith("raise resources.requests.memory of the release")


def test_an_image_that_would_run_as_root_is_not_looked_for_in_the_namespace() -> None:
    assert judged(read("root-refused")).action.endswith("or give busybox:1 a numeric USER above 0: root is refused")
    content = read("root-refused")
    state: Object = content["pods"][0]["status"]["containerStatuses"][0]["state"]["waiting"]
    state["message"] = (
        "container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root"
    )
    assert judged(content).action.startswith("set runAsUser of the release")
    state["message"] = "stat /etc/passwd: no such file"
    assert judged(content).action == "kubectl describe pod"


@pytest.mark.parametrize(
    ("case", "seconds", "text"),
    [
        ("between-retries", 3, "waits 7 s before attempt 2 (1 of 6 retries used)"),
        ("between-retries", -50, "waits 10 s before attempt 2 (1 of 6 retries used)"),
        ("between-retries", 11, "attempt 2 is about to start (1 of 6 retries used)"),
        ("between-retries-later", 5, "waits 35 s before attempt 4 (3 of 6 retries used)"),
        ("workers-killed", 4, "waits 4 s before attempt 2 (1 of 6 retries used)"),
    ],
)
def test_a_run_that_is_tried_again_says_when(case: str, seconds: float, text: str) -> None:
    """10 s after the first failure, twice as long after each next one; a client's clock may be behind the cluster's."""
    content = read(case)
    newest = max(finished(pod) for pod in content["pods"])
    status = judged(content, now=newest + timedelta(seconds=seconds))
    assert text in status.message
    assert "resume" not in status.action, "it goes on by itself"


def test_a_long_row_of_failures_waits_ten_minutes() -> None:
    content = read("between-retries-later")
    content["job"]["status"]["failed"] = 40
    content["job"]["spec"]["backoffLimit"] = 99
    newest = max(finished(pod) for pod in content["pods"])
    assert "waits 600 s before attempt 41" in judged(content, now=newest).message
    assert "attempt 41 comes after a pause" in judged(content | {"pods": []}).message


def finished(pod: Object) -> datetime:
    return datetime.fromisoformat(pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"])


def test_a_deadline_tells_what_the_run_was_doing() -> None:
    text = "not done within activeDeadlineSeconds="
    assert judged(read("deadline")).message == f"{text}5; what it had saved by then stays in the store"
    assert judged(read("deadline-stopping")).message == f"{text}30; the pod saves a checkpoint and ends"
    assert judged(read("deadline-between-retries")).message == f"{text}25; the last attempt: exit code 69"
    never = judged(read("deadline-unscheduled"))
    assert never.message.startswith(f"{text}8; no container ran: no node takes the pod: 0/1 nodes are available: ")
    assert never.action.endswith("; then resume")


def test_the_gates_verdict_is_in_the_status_and_in_the_list() -> None:
    refused, promoted = judged(read("succeeded-refused")), judged(read("succeeded-promoted"))
    assert (refused.verdict, refused.accuracy, promoted.verdict) == ("refused", 0.9722, "promoted")
    assert refused.message.startswith("committed, refused by the gate: accuracy 0.9722 is 0.0167 below the champion")
    assert "gate       refused" in describe(refused)
    lines = to_table([refused, promoted, judged(read("running"))]).splitlines()
    assert [line.split()[5] for line in lines] == ["GATE", "refused", "promoted", "-"]
    assert refused.to_dict()["verdict"] == "refused"


def test_what_an_older_run_says_of_the_gate_is_taken() -> None:
    assert verdict_of({"promoted": True}) == "promoted"
    assert verdict_of({"promoted": False}) == "not promoted"
    assert verdict_of({}) == ""
    decided: Object = {"event": "gate.decided", "verdict": "same"}
    assert _facts([], [decided])["verdict"] == "same"


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


@pytest.mark.parametrize("case", _WORKERS)
def test_each_of_several_workers_is_judged(case: str) -> None:
    status = judged(read(case))
    found = [(each.phase, each.reason, each.exit_code, each.attempts) for each in status.workers]
    assert found == _WORKERS[case]
    assert [worker.index for worker in status.workers] == [0, 1]
    assert status.to_dict()["workers"][1]["pod"] == status.workers[1].pod


def test_the_worker_that_the_others_wait_for_is_named() -> None:
    status = judged(read("workers-pending"))
    assert status.message.startswith("worker 1 is Pending and the others wait for it: no node takes the pod: 0/1 nodes")
    assert status.num_running == 1
    assert "workers    1/2 running" in describe(status).splitlines()
    assert "worker 1 is Pending" in judged(read("workers-quota")).message


def test_the_first_cause_is_told_and_not_what_follows_from_it() -> None:
    """The chief ended with 76 after worker 1 was killed, and was deleted after worker 1 ended with 64."""
    message = judged(read("workers-killed")).message
    assert message.startswith("worker 1 ended: killed with SIGKILL at step 405, epoch 9 from outside: ")
    assert "(1 of 6 retries used)" in message
    assert "PeerLost" not in describe(judged(read("workers-killed")))
    back = judged(read("workers-killed-and-back")).message
    assert back.startswith(
        "a further attempt works on it; the last one: worker 1 ended: killed with SIGKILL at step 405, epoch 9 from outside"
    )
    refused = judged(read("workers-exit-64")).message
    assert refused == "worker 1 ended: exit code 64: data.uri: other data than worker 0"


def test_the_cause_of_an_earlier_attempt_is_not_that_of_the_last() -> None:
    """Worker 1 was killed in the first attempt; in the second it was evicted, so that only the chief's pod is there."""
    content = read("workers-killed-and-back")
    content["pods"] = [pod for pod in content["pods"] if not pod["metadata"]["name"].endswith("-l2hc2")]
    chief = content["pods"][-1]["status"]
    state = {"exitCode": 75, "finishedAt": "2026-11-26T02:12:00Z", "message": '{"reason": "told to stop"}'}
    chief["phase"], chief["containerStatuses"][0]["state"] = "Failed", {"terminated": state}
    content["job"]["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": "DeadlineOver"}]
    status = judged(content)
    assert (status.reason, status.message) == ("Interrupted", "worker 0 ended: exit code 75: told to stop")


def test_progress_of_several_workers_is_the_chiefs() -> None:
    content = read("workers-succeeded")
    assert judged(content).step == 9380
    killed = judged(read("workers-killed"))
    assert (killed.step, killed.pod) == (405, read("workers-killed")["pods"][0]["metadata"]["name"])


def test_one_worker_is_told_as_before() -> None:
    status = judged(read("running"))
    assert status.workers == ()
    assert "workers" not in status.to_dict()
    assert "workers" not in describe(status)
    assert "WORKERS" not in to_table([status])
    assert "  WORKERS  " in to_table([status, judged(read("workers-running"))])


def test_lines_of_several_workers_are_those_in_trouble() -> None:
    content = read("workers-killed")
    terminated: Object = content["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]
    terminated |= {"exitCode": 69, "message": '{"reason": "no store"}'}
    lines = [line for line in describe(judged(content)).splitlines() if line.startswith("worker ")]
    assert len(lines) == 1
    for case in ("workers-running", "workers-finishing", "workers-suspending", "workers-succeeded"):
        assert "worker 1 " not in describe(judged(read(case)))


def test_a_worker_that_somebody_deletes_is_told_from_one_that_its_job_stops() -> None:
    content = read("workers-evicting")
    conditions: list[Object] = content["pods"][1]["status"]["conditions"]
    content["pods"][1]["status"]["conditions"] = [each for each in conditions if each["type"] != "DisruptionTarget"]
    status = judged(content)
    told = "worker 1 is Stopping: it was deleted; worker 0 saves a checkpoint, and all end"
    assert (status.phase, status.reason, status.message) == ("Stopping", "Deleted", told)
    assert status.workers[1].reason == "Deleted"
    assert judged(read("workers-suspending")).workers[1].reason == "Stopped"


def test_a_worker_whose_node_does_not_answer_is_named_and_does_not_count_as_running() -> None:
    content = read("workers-running")
    ready = next(each for each in content["pods"][1]["status"]["conditions"] if each["type"] == "Ready")
    ready["status"] = "Unknown"
    status = judged(content)
    assert (status.reason, status.message) == ("NodeLost", "worker 1 is Running: its node does not answer")
    assert status.num_running == 1


def test_accuracy_of_a_running_run_is_that_of_the_split_that_it_scores() -> None:
    epoch: Object = {"event": "epoch.end", "step": 5, "epoch": 1, "val_accuracy": 0.5}
    assert _facts([], [epoch])["accuracy"] == 0.5
    assert _facts([], [epoch, {"event": "epoch.end", "step": 10, "epoch": 2}])["accuracy"] == 0.5, "not evaluated"
    assert _facts([], [epoch, {"event": "evaluate.end", "test_accuracy": 0.4}])["accuracy"] == 0.4


def test_a_run_that_waits_for_the_volume_of_another_is_told_what_to_do() -> None:
    """As Kubernetes 1.37's scheduler says it of ReadWriteOncePod, and its attach controller of ReadWriteOnce."""
    said = "1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already "
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": f"{said}in-use by another pod.",
    }
    pod = {"metadata": {"name": "p"}, "spec": {}, "status": {"conditions": [condition]}}
    assert explain_not_started(pod, []).action.startswith(
        "wait: the pod starts when the run that uses the volume has ended; "
    )
    attach = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) train-1-x'
    event = {"type": "Warning", "reason": "FailedAttachVolume", "message": attach, "metadata": {"name": "e"}}
    event |= {"involvedObject": {"kind": "Pod", "name": "p"}}
    waiting = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {}}
    cause = explain_not_started(waiting, [event])
    assert cause.action.endswith("for runs beside each other set store.uri, or persistence.accessModes={ReadWriteMany}")
