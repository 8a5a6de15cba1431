"""Releases that somebody waits for (Helm's --wait, as Flux does) or applies without Helm; what `helm test` leaves behind.

The StorageClass of the cluster binds with the first consumer. docs/gitops.md says what to set.
"""

import pytest

from tests.charts.helm import render_text
from tests.e2e.cluster import Namespace, Object

_NIGHTLY: Object = {"schedule": "0 0 1 1 *", "activeDeadlineSeconds": 300}
_RUNS = "app.kubernetes.io/name=mnist-train"


def _phases(ns: Namespace) -> dict[str, str]:
    return {claim["metadata"]["name"]: claim["status"]["phase"] for claim in ns.get("pvc")}


def _pods(ns: Namespace) -> list[str]:
    return [str(pod["metadata"]["name"]) for pod in ns.get("pod")]


def test_a_schedule_with_a_volume_is_waited_for_tested_and_removed_with_its_claim(ns: Namespace) -> None:
    """No run has mounted the claim, and none will before January."""
    ns.install("nightly", _NIGHTLY, flags=("--wait", "--wait-for-jobs", "--timeout=240s"))
    assert _phases(ns) == {"nightly-store": "Bound"}
    assert "a second create-only write is refused" in ns.helm("test", "nightly", "--logs", "--timeout=180s")
    assert "nightly-test" not in _pods(ns)
    ns.helm("uninstall", "nightly", "--wait")
    ns.kubectl(
        "delete", "pvc", "nightly-store", "--timeout=60s"
    )  # a pod that used it, even a finished one, would hold it
    assert not ns.get("pvc")


@pytest.mark.slow
def test_a_suspended_run_is_waited_for_as_helm_3_does_and_starts_on_the_bound_volume(ns: Namespace) -> None:
    """Helm 4 and Flux 2.8 count a Job as ready once it has started, which neither a suspended nor a queued one has."""
    held = {"suspend": True, "test": {"waitSeconds": 0}}
    job = ns.install("train", held, flags=("--wait=legacy", "--timeout=240s"))
    assert _phases(ns) == {"train-store": "Bound"}
    with pytest.raises(AssertionError, match=rf"Job/{ns.name}/{job} not ready.*Job not started"):
        ns.install("train", held, flags=("--wait", "--timeout=10s"))
    with pytest.raises(AssertionError, match="has no COMMIT"):
        ns.helm("test", "train", "--logs", "--timeout=120s")
    assert "train-test" not in _pods(ns)  # not even after a failure
    assert ns.install("train", {}, flags=("--wait", "--wait-for-jobs", "--timeout=240s")) == job
    assert ns.ended(job)[0].message["outcome"] == "committed"
    assert "verified: run" in ns.helm("test", "train", "--logs", "--timeout=180s")


@pytest.mark.slow
def test_two_jobs_that_nothing_pruned_commit_one_run_once(ns: Namespace) -> None:
    """`helm template | kubectl apply`, and the same again with more memory: the old Job is not in the manifests, and stays."""
    applied = [
        render_text(ns.values, flags=("--no-hooks", f"--set=resources.limits.memory={memory}"), namespace=ns.name)
        for memory in ("1536Mi", "1600Mi")
    ]
    for manifests in applied:
        ns.kubectl("apply", "-f", "-", stdin=manifests)
        for job in (jobs := [str(job["metadata"]["name"]) for job in ns.get("job", "-l", _RUNS)]):
            assert ns.wait_for_end(job) == "Complete"
    assert sorted(end.message["outcome"] for job in jobs for end in ns.ended(job)) == ["already_committed", "committed"]
    selected = ("--prune", "--selector=app.kubernetes.io/instance=train")
    assert "pruned" in ns.kubectl("apply", *selected, "-f", "-", stdin=applied[1])
    assert len(ns.get("job", "-l", _RUNS)) == 1
    assert _phases(ns) == {"train-store": "Bound"}
