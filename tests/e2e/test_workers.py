"""A run of two workers in the cluster: whatever happens to its pods, it ends in the bits of one process with two replicas."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.cluster import Ended, Namespace, Object, wait_until
from tests.e2e.conftest import evict, fill_memory

_INDEX = "batch.kubernetes.io/job-completion-index"
_TRAIN: Object = {"train": {"epochs": 40}, "checkpoint": {"interval_seconds": 2}, "persistence": {"size": "100Mi"}}
_WORKERS: Object = {
    "cluster": {"workers": 2, "peer_timeout_seconds": 20},
    "backoffLimit": 3,
    "resources": {"requests": {"cpu": "50m"}},
}
_HOG: Object = {
    "extraVolumes": [{"name": "hog", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}}],
    "extraVolumeMounts": [{"name": "hog", "mountPath": "/hog"}],
}


class Workers:
    """The pods of a Job, by index, and what is seen of them."""

    def __init__(self, ns: Namespace, job: str) -> None:
        self.ns, self.job = ns, job

    def pod(self, index: int) -> str:
        """The newest pod of a worker."""
        found = [pod for pod in self.ns.pods(self.job) if pod["metadata"]["labels"].get(_INDEX) == str(index)]
        return str(found[-1]["metadata"]["name"]) if found else ""

    def wait_for_step(self, after: int, *, other_than: str = "") -> int:
        """Until another chief than that pod has saved a checkpoint beyond a step; returns that step."""

        def saved() -> int:
            pod = self.pod(0)
            try:
                events = self.ns.events_of(pod) if pod not in ("", other_than) else []
            except AssertionError:  # its container has not started
                return 0
            return max(
                (int(e["step"]) for e in events if e["event"] == "checkpoint.saved" and e["step"] > after), default=0
            )

        return wait_until(saved, f"a checkpoint of job {self.job} after step {after}", seconds=180)

    def wait_for_end(self, pod: str) -> Ended:
        """How a pod ended."""

        def ended() -> Ended | None:
            return next((end for end in self.ns.ended(self.job) if end.pod == pod), None)

        found = wait_until(ended, f"end of pod {pod}", seconds=90)
        assert found is not None
        return found

    def evict(self) -> str:
        """Evict worker 1; returns the chief's pod, which has saved and ended with 75."""
        chief = self.pod(0)
        with self.ns.following(chief) as events:
            evict(self.ns, self.pod(1))
        [end] = [event for event in events if event["event"] == "run.end"]
        assert (end["outcome"], end["code"]) == ("interrupted", 75)
        return chief

    def show(self, moment: str) -> None:
        """What `mnist-k8s status` says now; docs/workers.md has it as printed."""
        command = [sys.executable, "-m", "k8s", "status", self.job, "--namespace", self.ns.name]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
        print(f"\n# {moment}\n$ mnist-k8s status {self.job}\n{done.stdout}{done.stderr}", flush=True)


@pytest.fixture(scope="module")
def alone() -> Callable[[Namespace], str]:
    """The weights digest of one process with two replicas; trained once."""
    known: list[str] = []

    def digest(ns: Namespace) -> str:
        if not known:
            job = ns.install("alone", _TRAIN, {"cluster": {"cpu_replicas": 2}})
            assert ns.wait_for_end(job) == "Complete"
            known.append(ns.commit(job)["weights_digest"])
        return known[0]

    return digest


def has_ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Failed", "Succeeded")


def weights_of(ns: Namespace, workers: Workers) -> str:
    events = ns.events_of(workers.pod(0))
    return str(next(event["weights_digest"] for event in events if event["event"] == "commit.done"))


def test_evicted_worker_stops_all_at_one_step_and_the_run_ends_in_the_same_bits(
    ns: Namespace, alone: Callable[[Namespace], str]
) -> None:
    job = ns.install("train", _TRAIN, _WORKERS, {"backoffLimit": 0})
    workers = Workers(ns, job)
    workers.wait_for_step(0)
    workers.evict()
    assert ns.wait_for_end(job, seconds=300) == "Complete"
    assert ns.job(job)["status"].get("failed", 0) == 0
    assert weights_of(ns, workers) == alone(ns)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deleted_killed_evicted_and_suspended_it_ends_in_the_same_bits(
    ns: Namespace, alone: Callable[[Namespace], str]
) -> None:
    values = (_TRAIN, _WORKERS, _HOG, {"train": {"epochs": 120}})
    job = ns.install("train", *values)
    workers = Workers(ns, job)
    step = workers.wait_for_step(0)
    workers.show("both train")

    chief = workers.pod(0)
    with ns.following(chief) as events:
        ns.kubectl("delete", "pod", workers.pod(1), "--wait=false")
    workers.show("worker 1 was deleted")
    end = next(event for event in events if event["event"] == "run.end")
    assert (end["outcome"], end["code"]) == ("interrupted", 75) and end["step"] >= step
    step = workers.wait_for_step(end["step"], other_than=chief)

    chief, other = workers.pod(0), workers.pod(1)
    with pytest.raises(AssertionError):  # files in memory count: the kernel kills the largest process
        fill_memory(ns, chief)
    assert workers.wait_for_end(other).code == 76
    workers.show("the chief was killed")
    step = workers.wait_for_step(step, other_than=chief)

    chief = workers.evict()
    workers.show("worker 1 was evicted")
    workers.wait_for_step(step, other_than=chief)

    assert ns.install("train", *values, {"suspend": True}) == job
    wait_until(lambda: all(map(has_ended, ns.pods(job))), "end of the suspended pods", seconds=90)
    workers.show("suspended")
    assert ns.install("train", *values) == job
    assert ns.wait_for_end(job, seconds=300) == "Complete"
    workers.show("complete")
    status = ns.job(job)["status"]
    print(
        f"\nJob status: {json.dumps({name: status.get(name) for name in ('succeeded', 'failed', 'completedIndexes')})}"
    )
    longer = ns.install("longer", _TRAIN, {"train": {"epochs": 120}, "cluster": {"cpu_replicas": 2}})
    assert ns.wait_for_end(longer) == "Complete"
    assert weights_of(ns, workers) == ns.commit(longer)["weights_digest"]


@pytest.mark.slow
def test_worker_with_a_wrong_setting_ends_the_job_with_its_name(ns: Namespace) -> None:
    values = (_TRAIN, _WORKERS, {"model": {"args": {"width": 1}}})  # of a model of one's own, and there is none
    job = ns.install("train", *values)
    workers = Workers(ns, job)
    assert ns.wait_for_end(job) in ("PodFailurePolicy", "FailedIndexes", "MaxFailedIndexesExceeded")
    workers.show("a wrong setting")


@pytest.mark.slow
def test_four_workers_and_a_release_with_a_long_name(ns: Namespace) -> None:
    values = (_TRAIN, _WORKERS, {"cluster": {"workers": 4}, "train": {"epochs": 3}})
    job = ns.install("t" * 53, *values)
    assert ns.wait_for_end(job) == "Complete"
