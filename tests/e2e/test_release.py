"""What people do with a release: install, test, upgrade, roll back, uninstall, schedule, start by hand."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.cluster import Namespace, Object, wait_until
from tests.e2e.conftest import keys_in

_SLOT = "batch.kubernetes.io/cronjob-scheduled-timestamp"


def _run_of(ns: Namespace, job: str) -> str:
    return str(ns.job(job)["metadata"]["annotations"]["mnist-train/run"])


def test_install_trains_into_object_storage_and_helm_test_verifies_it(ns: Namespace, s3: Object) -> None:
    job = ns.install("train", keys_in(ns), {"store": s3})
    assert ns.wait_for_end(job) == "Complete"
    [end] = ns.ended(job)
    assert (end.code, end.message["outcome"]) == (0, "committed")
    assert end.message["run"] == _run_of(ns, job)
    tested = ns.helm("test", "train", "--logs", "--timeout", "120s")
    assert f"verified: run {_run_of(ns, job)}" in tested
    events = ns.events_of(end.pod)
    assert next(event for event in events if event["event"] == "run.end")["code"] == 0


@pytest.mark.slow
def test_upgrades_start_what_they_should_and_uninstall_keeps_the_results(ns: Namespace) -> None:
    first = ns.install("train")
    run = _run_of(ns, first)
    assert ns.wait_for_end(first) == "Complete"
    finished = ns.job(first)["metadata"]["uid"]

    assert ns.install("train") == first
    assert ns.job(first)["metadata"]["uid"] == finished  # the same values do nothing

    bigger = ns.install("train", {"resources": {"limits": {"memory": "1600Mi"}}})
    assert bigger != first
    assert _run_of(ns, bigger) == run
    assert ns.wait_for_end(bigger) == "Complete"
    assert ns.ended(bigger)[0].message["outcome"] == "already_committed"

    other = ns.install("train", {"train": {"epochs": 3}})
    assert _run_of(ns, other) != run
    assert ns.wait_for_end(other) == "Complete"

    ns.helm("rollback", "train", "1")
    assert ns.wait_for_end(first) == "Complete"
    assert ns.ended(first)[0].message["outcome"] == "already_committed"

    ns.helm("uninstall", "train", "--wait")
    assert not ns.get("job")
    assert [claim["metadata"]["name"] for claim in ns.get("pvc")] == ["train-store"]
    again = ns.install("train")
    assert ns.wait_for_end(again) == "Complete"
    assert ns.ended(again)[0].message["outcome"] == "already_committed"


def test_a_schedule_can_be_started_by_hand(ns: Namespace, s3: Object) -> None:
    schedule = {"schedule": "0 0 1 1 *", "activeDeadlineSeconds": 300}
    assert ns.install("nightly", keys_in(ns), {"store": s3}, schedule) == ""
    ns.kubectl("create", "job", "--from=cronjob/nightly", "by-hand")
    assert ns.wait_for_end("by-hand") == "Complete"
    assert ns.ended("by-hand")[0].message["run"] == f"{ns.name}.by-hand"
    assert "a second create-only write is refused" in ns.helm("test", "nightly", "--logs", "--timeout", "120s")


@pytest.mark.slow
def test_forbid_starts_nothing_beside_a_run_that_hangs_and_its_deadline_frees_the_schedule(
    ns: Namespace, s3: Object
) -> None:
    """R18. The run is made endless; every minute is a slot; the deadline lies in the second slot after its start."""
    schedule = {"schedule": "* * * * *", "activeDeadlineSeconds": 100, "backoffLimit": 0}
    ns.install("often", keys_in(ns), {"store": s3}, schedule, {"train": {"epochs": 100_000}})
    jobs: list[Object] = wait_until(lambda: ns.get("job"), "first slot", seconds=90)
    first = str(jobs[0]["metadata"]["name"])
    assert len(jobs) == 1
    wait_until(
        lambda: [event for event in ns.get("event") if event["reason"] == "JobAlreadyActive"],
        "refused slot",
        seconds=130,
    )
    assert len(ns.get("job")) == 1
    assert ns.wait_for_end(first, seconds=150) == "DeadlineExceeded"
    second = wait_until(
        lambda: [job for job in ns.get("job") if job["metadata"]["name"] != first], "next slot", seconds=130
    )
    assert second[0]["metadata"]["name"] != first


@pytest.mark.slow
def test_a_schedule_commits_one_run_for_each_slot(ns: Namespace, s3: Object) -> None:
    ns.install("often", keys_in(ns), {"store": s3}, {"schedule": "* * * * *", "activeDeadlineSeconds": 55})
    jobs = wait_until(lambda: [job for job in ns.get("job") if job["status"].get("succeeded")], "run", seconds=150)
    for job in jobs:
        name = job["metadata"]["name"]
        assert [end.message["run"] for end in ns.ended(name)] == [f"{ns.name}.{name}"]


@pytest.mark.slow
def test_slots_missed_while_suspended_are_made_up_for_by_one_run(ns: Namespace, s3: Object) -> None:
    """R18. The slot that is made up for is the last one that was missed."""
    often = [keys_in(ns), {"store": s3, "schedule": "* * * * *", "activeDeadlineSeconds": 55}]
    ns.install("often", *often, {"suspend": True})
    made = _created(ns.get("cronjob")[0])
    time.sleep(135 - made.second)  # past the second slot after the one in which it was made
    assert not ns.get("job")
    ns.install("often", *often)
    resumed = datetime.now(UTC)
    jobs = wait_until(lambda: ns.get("job"), "run", seconds=40)
    slots = [datetime.fromisoformat(job["metadata"]["annotations"][_SLOT]) for job in jobs]
    assert len(slots) == 1
    assert resumed - slots[0] < timedelta(seconds=75)


@pytest.mark.slow
def test_two_jobs_of_one_run_commit_it_once(ns: Namespace, s3: Object) -> None:
    """R18: what a duplicate slot, or the same Job made twice, comes to."""
    same = [keys_in(ns), {"store": s3, "run": {"id": f"{ns.name}.same"}}]
    jobs = [ns.install(release, *same) for release in ("one", "two")]
    assert [ns.wait_for_end(job) for job in jobs] == ["Complete", "Complete"]
    outcomes = sorted(end.message["outcome"] for job in jobs for end in ns.ended(job))
    assert outcomes == ["already_committed", "committed"]


def _created(found: Object) -> datetime:
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"])


def test_what_is_missing_is_said(ns: Namespace, s3: Object) -> None:
    """A Secret or an image that is not there: the pod waits, and its status and events say for what."""
    secret = ns.install("no-secret", {"store": s3, "credentials": {"existingSecret": "absent"}})
    image = ns.install("no-image", {"image": {"repository": "registry.invalid/absent", "pullPolicy": "Always"}})

    def waiting_for(job: str) -> Object:
        pods = ns.pods(job)
        statuses = pods[0]["status"].get("containerStatuses", []) if pods else []
        found: Object = statuses[0]["state"].get("waiting", {}) if statuses else {}
        return found if "message" in found else {}

    said = wait_until(lambda: waiting_for(secret), "reason", seconds=60)
    assert (said["reason"], said["message"]) == ("CreateContainerConfigError", 'secret "absent" not found')
    said = wait_until(lambda: waiting_for(image), "reason", seconds=90)
    assert said["reason"] in ("ErrImagePull", "ImagePullBackOff")


def test_the_api_server_accepts_every_example(ns: Namespace) -> None:
    """Server-side dry run of every ci file: admission, defaults and validation of the real server."""
    from tests.charts.helm import render
    from tests.charts.test_render import CI_FILES

    for file in CI_FILES:
        # The pod of `helm test` is admitted only where its service account and classes are; Jobs are not asked for theirs.
        # A PodMonitor needs the Prometheus operator.
        manifests = [
            each
            for each in render(files=(file,), namespace=ns.name)
            if each["kind"] not in ("Pod", "PodMonitor", "PrometheusRule")
        ]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        assert "created (server dry run)" in ns.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text), file


def test_the_api_server_refuses_a_time_zone_that_is_none(ns: Namespace) -> None:
    with pytest.raises(AssertionError, match=r"timeZone.*unknown time zone"):
        ns.install("t", {"schedule": "0 3 * * *", "activeDeadlineSeconds": 60, "timeZone": "Mars/Olympus"})


def test_a_quota_that_is_used_up_is_said(ns: Namespace) -> None:
    ns.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    )
    job = ns.install("train")
    said = wait_until(
        lambda: [event["message"] for event in ns.get("event") if event["reason"] == "FailedCreate"],
        "event",
        seconds=60,
    )
    assert "exceeded quota: none" in said[0]
    assert ns.job(job)["status"].get("failed", 0) == 0
