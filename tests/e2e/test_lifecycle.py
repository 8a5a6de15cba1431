"""Runs that are disturbed go on where they were, lose no step, and end in the weights of an undisturbed one."""

import json
from collections.abc import Callable

import pytest

from tests.e2e.cluster import Ended, Namespace, Object, run_command, wait_until
from tests.e2e.conftest import evict, fill_memory, keys_in

# About 40 seconds of training on two cores: long enough to be disturbed.
_LONG: Object = {"train": {"epochs": 200}, "checkpoint": {"interval_seconds": 2}}


@pytest.fixture(scope="module")
def undisturbed() -> Callable[[Namespace], str]:
    """The weights digest of a run that nothing disturbs; trained once."""
    known: list[str] = []

    def digest(ns: Namespace) -> str:
        if not known:
            job = ns.install("undisturbed", _LONG, {"persistence": {"size": "100Mi"}})
            assert ns.wait_for_end(job) == "Complete"
            known.append(ns.commit(job)["weights_digest"])
        return known[0]

    return digest


def _restored_step(ns: Namespace, pod: str) -> int:
    return int(next(event["step"] for event in ns.events_of(pod) if event["event"] == "checkpoint.restored"))


def _interrupted_step(events: list[Object]) -> int:
    """The step at which SIGTERM found the training, and which the pod reported at its end with code 75."""
    end = next(event for event in events if event["event"] == "run.end")
    assert (end["outcome"], end["code"]) == ("interrupted", 75)
    return int(end["step"])


def _wait_for_code(ns: Namespace, job: str, pod: str) -> Ended:
    def ended() -> Ended | None:
        return next((end for end in ns.ended(job) if end.pod == pod), None)

    found = wait_until(ended, f"end of pod {pod}", seconds=90)
    assert found is not None
    return found


def test_an_evicted_pod_is_replaced_without_being_counted_and_loses_no_step(
    ns: Namespace, s3: Object, undisturbed: Callable[[Namespace], str]
) -> None:
    job = ns.install("train", keys_in(ns), {"store": s3}, _LONG, {"backoffLimit": 0})
    pod = ns.wait_for_training(job)
    with ns.following(pod) as events:
        evict(ns, pod)
    assert ns.wait_for_end(job) == "Complete"
    last = ns.pods(job)[-1]["metadata"]["name"]
    assert last != pod
    assert ns.job(job)["status"].get("failed", 0) == 0
    assert _restored_step(ns, last) == _interrupted_step(events)
    assert ns.commit(job)["weights_digest"] == undisturbed(ns)


@pytest.mark.slow
def test_a_drained_node_sends_the_run_away_with_a_checkpoint(
    ns: Namespace, s3: Object, undisturbed: Callable[[Namespace], str]
) -> None:
    job = ns.install("train", keys_in(ns), {"store": s3}, _LONG, {"backoffLimit": 0})
    pod = ns.wait_for_training(job)
    node = next(each["spec"]["nodeName"] for each in ns.pods(job) if each["metadata"]["name"] == pod)
    try:  # by selector: the only node may carry the store too
        with ns.following(pod) as events:
            run_command(
                "kubectl", "drain", node, f"--pod-selector=batch.kubernetes.io/job-name={job}", "--ignore-daemonsets",
                "--delete-emptydir-data", "--force", "--timeout=90s",
            )  # fmt: skip
    finally:
        run_command("kubectl", "uncordon", node)
    assert ns.wait_for_end(job) == "Complete"
    assert _restored_step(ns, ns.pods(job)[-1]["metadata"]["name"]) == _interrupted_step(events)
    assert ns.commit(job)["weights_digest"] == undisturbed(ns)


@pytest.mark.slow
def test_a_deleted_pod_is_replaced_and_the_new_one_goes_on_at_the_very_step(
    ns: Namespace, undisturbed: Callable[[Namespace], str]
) -> None:
    """Into a PVC. The finalizer of the Job controller keeps the pod until its end is counted."""
    job = ns.install("train", _LONG)
    pod = ns.wait_for_training(job)
    with ns.following(pod) as events:
        ns.kubectl("delete", "pod", pod, "--wait=false")
    assert ns.wait_for_end(job) == "Complete"
    assert ns.job(job)["status"]["failed"] == 1
    assert _restored_step(ns, ns.pods(job)[-1]["metadata"]["name"]) == _interrupted_step(events)
    assert ns.commit(job)["weights_digest"] == undisturbed(ns)


def test_suspend_saves_and_resume_goes_on(ns: Namespace, undisturbed: Callable[[Namespace], str]) -> None:
    job = ns.install("train", _LONG)
    with ns.following(ns.wait_for_training(job)) as events:
        assert ns.install("train", _LONG, {"suspend": True}) == job
    wait_until(lambda: not ns.pods(job), "end of the suspended pod", seconds=90)
    assert any(
        condition["type"] == "Suspended" and condition["status"] == "True"
        for condition in ns.job(job)["status"]["conditions"]
    )
    assert ns.install("train", _LONG) == job
    assert ns.wait_for_end(job) == "Complete"
    assert _restored_step(ns, ns.pods(job)[-1]["metadata"]["name"]) == _interrupted_step(events)
    assert ns.commit(job)["weights_digest"] == undisturbed(ns)


@pytest.mark.slow
def test_an_upgrade_during_a_run_goes_on_with_it_in_another_job(
    ns: Namespace, undisturbed: Callable[[Namespace], str]
) -> None:
    """The first pod saves where it is; until it has ended both may work on the run."""
    first = ns.install("train", _LONG)
    with ns.following(ns.wait_for_training(first)) as events:
        bigger = ns.install("train", _LONG, {"resources": {"limits": {"memory": "1600Mi"}}})
    assert bigger != first
    assert _interrupted_step(events) > 0
    assert ns.wait_for_end(bigger) == "Complete"
    assert first not in [job["metadata"]["name"] for job in ns.get("job")]
    assert _restored_step(ns, ns.pods(bigger)[-1]["metadata"]["name"]) > 0
    assert ns.commit(bigger)["weights_digest"] == undisturbed(ns)


@pytest.mark.slow
def test_a_deadline_ends_the_run_with_a_checkpoint_and_retry_goes_on(ns: Namespace) -> None:
    values = {"train": {"epochs": 100_000}, "checkpoint": {"interval_seconds": 1}}
    job = ns.install("train", values, {"activeDeadlineSeconds": 40})
    assert ns.wait_for_end(job) == "DeadlineExceeded"
    again = ns.install("train", values, {"activeDeadlineSeconds": 40, "retry": 1})
    assert again != job
    pod = ns.wait_for_training(again)
    assert _restored_step(ns, pod) > 0


def test_a_pod_killed_for_memory_says_how_far_it_was(ns: Namespace) -> None:
    values = {
        "train": {"epochs": 100_000},
        "checkpoint": {"interval_seconds": 1},
        "backoffLimit": 0,
        "extraVolumes": [{"name": "hog", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}],
        "extraVolumeMounts": [{"name": "hog", "mountPath": "/hog"}],
    }
    job = ns.install("train", values)
    pod = ns.wait_for_training(job)
    # Files in memory count against the limit of the container: the kernel kills its largest process.
    with pytest.raises(AssertionError):
        fill_memory(ns, pod)
    end = _wait_for_code(ns, job, pod)
    assert (end.code, end.reason) == (137, "OOMKilled")
    assert end.message["outcome"] == "running"
    assert end.message["step"] > 0
    assert ns.wait_for_end(job) == "BackoffLimitExceeded"
    print(f"\n| out of memory | 137 | BackoffLimitExceeded | {json.dumps(end.message)} |")
