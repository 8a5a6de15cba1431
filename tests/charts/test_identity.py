"""Which values make another run, which another Job of the same run, and which nothing; and how long names get."""

import re
from typing import Any

import pytest

from job.contract import is_run_id, pod_from_environment
from tests.charts.helm import arguments, find, is_binding, pod_spec, render, run_id

_LONGEST_RELEASE = "a" * 53


def _job_name(values: dict[str, Any]) -> str:
    return str(find(render(values), "Job")["metadata"]["name"])


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"epochs": 3}},
        {"model": {"hidden_units": [64]}},
        {"data": {"train_examples": 1_000_000}},
        {"run": {"seed": 1}},
        {"run": {"suffix": "again"}},
    ],
)
def test_what_decides_the_result_makes_another_run(values: dict[str, Any]) -> None:
    assert run_id(render(values)) != run_id(render({}))


@pytest.mark.parametrize(
    "values",
    [
        {"resources": {"limits": {"memory": "4Gi"}}},
        {"image": {"repository": "registry.example/other"}},
        {"checkpoint": {"interval_seconds": 5}},
        {"store": {"deadline_seconds": 60}},
        {"data": {"cache_dir": "/data/elsewhere"}},
        {"retry": 1},
        {"nodeSelector": {"a": "b"}},
        {"backoffLimit": 1},
    ],
)
def test_everything_else_makes_another_job_of_the_same_run(values: dict[str, Any]) -> None:
    assert run_id(render(values)) == run_id(render({}))
    assert _job_name(values) != _job_name({})


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"epochs": 20}},
        {"train": {"learning_rate": 0.01}},
        {"checkpoint": {"interval_seconds": 30}},
        {"model": {"build": None}},
        {"suspend": True},
        {"serviceAccount": {"annotations": {"a": "b"}}},
    ],
)
def test_a_default_said_again_and_suspend_change_neither(values: dict[str, Any]) -> None:
    assert (run_id(render(values)), _job_name(values)) == (run_id(render({})), _job_name({}))


def test_namespace_and_cluster_are_in_the_run_id() -> None:
    assert re.fullmatch(r"ml\.train-[0-9a-f]{8}", run_id(render({})))
    assert run_id(render({}, namespace="other")).startswith("other.train-")
    assert run_id(render({"clusterName": "berlin"})).startswith("berlin.ml.train-")


def test_a_run_id_of_ones_own_is_taken() -> None:
    assert run_id(render({"run": {"id": "mine.2"}})) == "mine.2"


def test_a_schedule_names_its_runs_after_their_jobs() -> None:
    manifests = render({"schedule": "0 3 * * *", "activeDeadlineSeconds": 60, "clusterName": "berlin"})
    assert not [manifest for manifest in manifests if manifest["kind"] == "Job" and not is_binding(manifest)]
    assert "--run.id=berlin.ml.$(JOB_NAME)" in arguments(find(manifests, "CronJob"))


@pytest.mark.parametrize("values", [{}, {"schedule": "0 3 * * *", "activeDeadlineSeconds": 60}])
def test_what_the_release_starts_says_so_in_its_environment_and_not_in_its_settings(values: dict[str, Any]) -> None:
    made = [
        manifest for manifest in render(values) if manifest["kind"] in ("Job", "CronJob") and not is_binding(manifest)
    ]
    for manifest in made:
        variables = pod_spec(manifest)["containers"][0]["env"]
        facts = pod_from_environment({each["name"]: each["value"] for each in variables if "value" in each})
        assert facts.origin == "schedule"
        assert not any("origin" in argument for argument in arguments(manifest))


@pytest.mark.parametrize("release", ["a", "a" * 43, "a" * 44, _LONGEST_RELEASE, "a.b.c", ("ab-" * 18)[:53].rstrip("-")])
def test_names_fit(release: str) -> None:
    """A CronJob may have 52 characters (its Jobs add 11), a pod's generated name adds 6 to its Job's, labels take 63."""
    values = {"clusterName": "c" * 63, "persistence": {"cache": True}, "networkPolicy": {"enabled": True}}
    manifests = render(values, name=release, namespace="n" * 63)
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 63
    cron, job = find(manifests, "CronJob")["metadata"]["name"], find(manifests, "Job")["metadata"]["name"]
    assert len(cron) <= 43
    assert len(job) <= 52
    assert len(f"{cron}-29384756") <= 52 + 11
    assert is_run_id(run_id(manifests))


def test_releases_that_are_cut_to_the_same_text_keep_different_names() -> None:
    names = [find(render({}, name=name), "CronJob")["metadata"]["name"] for name in ("a" * 52, "a" * 53, "a.b", "a-b")]
    assert len(set(names)) == 4
