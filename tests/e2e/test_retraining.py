"""Nights of a schedule: what is served changes only for the better, and can be taken back."""

import functools
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.cluster import Ended, Namespace, Object, wait_until
from tests.e2e.conftest import keys_in, start_tool_pod

_SLOT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
_WORSE: Object = {"train": {"epochs": 1, "learning_rate": 0.001}}
_BETTER: Object = {
    "model": {"activation": "relu"},
    "train": {"epochs": 6, "optimizer": "adam", "learning_rate": 0.001},
}


class Schedule:
    """A release whose slots come every minute, but only while a night is asked for."""

    def __init__(self, ns: Namespace, *values: Object) -> None:
        self._ns = ns
        self._values = ({"schedule": "* * * * *", "activeDeadlineSeconds": 120}, *values)

    def night(self, changed: Object) -> Ended:
        """Upgrade, let one slot come, and wait for the end of its run."""
        before = {job["metadata"]["name"] for job in self._ns.get("job")}
        self._ns.install("nightly", *self._values, changed, {"suspend": False})
        jobs: list[Object] = wait_until(
            lambda: [job for job in self._ns.get("job") if job["metadata"]["name"] not in before], "slot", seconds=90
        )
        self._ns.install("nightly", *self._values, changed, {"suspend": True})
        [job] = jobs
        assert _SLOT in job["metadata"]["annotations"]
        assert self._ns.wait_for_end(job["metadata"]["name"]) == "Complete"
        [end] = self._ns.ended(job["metadata"]["name"])
        assert end.code == 0
        return end

    def gate(self, end: Ended) -> Object:
        """What the gate said in a run's log."""
        return next(event for event in self._ns.events_of(end.pod) if event["event"] == "gate.decided")


@pytest.mark.long
def test_every_night_is_judged_and_the_champion_can_be_taken_back(ns: Namespace, s3: Object) -> None:
    store = {**s3, "uri": f"{s3['uri']}/{ns.name}"}
    schedule = Schedule(ns, keys_in(ns), {"store": store})
    tool = functools.partial(ns.kubectl, "exec", start_tool_pod(ns, endpoint=s3["endpoint"]), "--", "mnist-job")
    at = f"--store.uri={store['uri']}"

    first = schedule.night({})
    assert (first.message["outcome"], first.message["promoted"]) == ("committed", True)
    worse = schedule.night(_WORSE)
    assert (worse.message["outcome"], worse.message["promoted"]) == ("committed", False)
    said = schedule.gate(worse)
    assert (said["verdict"], said["rule"]) == ("refused", "max_accuracy_drop")
    assert f"{worse.message['accuracy']:.4f} is" in said["reason"]
    assert f"champion so far ({first.message['accuracy']:.4f})" in said["reason"]
    assert f"run {first.message['run']}," in tool("verify", "--champion", "digits", at)

    better = schedule.night(_BETTER)
    assert better.message["promoted"] is True
    assert (schedule.gate(better)["rule"], schedule.gate(better)["version"]) == ("not_worse", 2)
    skipped = schedule.night({**_BETTER, "run": {"skip_if_unchanged": True}})
    assert skipped.message["outcome"] == "skipped"
    assert skipped.message["commit"] == f"runs/{better.message['run']}/COMMIT.json"

    assert f"run {first.message['run']}, version 3" in tool("rollback", "--why", "sevens read as ones", at)
    verified = tool("verify", "--champion", "digits", at)
    assert f"run {first.message['run']}," in verified
    assert "serving layout: 4 files, equal" in verified
    assert f"/tmp/serving/3: run {first.message['run']}" in tool("fetch", "--to", "/tmp/serving", at)
    table = tool("runs", at).splitlines()
    states = {line.split()[0]: line for line in table[1:]}
    assert "refused (max_accuracy_drop)" in states[worse.message["run"]]
    assert "digits 3" in states[first.message["run"]]
    assert " skipped " in states[skipped.message["run"]]


@pytest.mark.slow
def test_slots_follow_the_clock_of_the_time_zone(ns: Namespace, s3: Object) -> None:
    """Two minutes from now in Kolkata, where it is half past when it is the full hour here."""
    there = datetime.now(UTC) + timedelta(hours=5, minutes=30) + timedelta(minutes=2)
    slot = {"schedule": f"{there.minute} {there.hour} * * *", "timeZone": "Asia/Kolkata", "activeDeadlineSeconds": 60}
    asked = datetime.now(UTC)
    ns.install("there", keys_in(ns), {"store": s3}, slot)
    ns.install("here", keys_in(ns), {"store": s3}, slot, {"timeZone": "Etc/UTC"})
    jobs: list[Object] = wait_until(lambda: ns.get("job"), "slot", seconds=150)
    [job] = jobs
    assert job["metadata"]["labels"]["app.kubernetes.io/instance"] == "there"
    came = datetime.fromisoformat(job["metadata"]["annotations"][_SLOT])
    assert timedelta(minutes=1) < came - asked < timedelta(minutes=2, seconds=1)


@pytest.mark.slow
def test_a_job_made_again_for_a_run_that_retention_removed_ends_well(ns: Namespace, s3: Object) -> None:
    """As GitOps makes it after a TTL or for another version of the chart: the run had its result, and is not made again."""
    store = {"store": {**s3, "uri": f"{s3['uri']}/{ns.name}"}, "retention": {"keep_runs": 1, "keep_versions": 1}}

    def train(release: str, *values: Object) -> Ended:
        job = ns.install(release, keys_in(ns), store, *values)
        assert ns.wait_for_end(job) == "Complete"
        [end] = ns.ended(job)
        return end

    worse = train("first", _WORSE)
    train("second", _BETTER)  # the champion of now; its retention removes the first run
    again = train("first", _WORSE, {"retry": 1})
    assert (again.code, again.message["outcome"], again.message["run"]) == (0, "retired", worse.message["run"])
    assert again.message["reason"].startswith(f"run {worse.message['run']} was committed, and removed by retention at ")
    print(again.message)
