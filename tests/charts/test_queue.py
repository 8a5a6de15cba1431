"""Kueue: its labels, what they do to names, and what contradicts a queue."""

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator

from k8s.submit import build_job
from tests.charts.helm import CHART, RenderError, find, pod_spec, render, run_id

_SCHEMA = json.loads((CHART / "values.schema.json").read_text())
_QUEUE = {"queueName": "team-queue", "queuePriorityClass": "training"}
_LABELS = {"kueue.x-k8s.io/queue-name": "team-queue", "kueue.x-k8s.io/priority-class": "training"}
_SCHEDULE = {"schedule": "@daily", "activeDeadlineSeconds": 7200}


def _of_kueue(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name.startswith("kueue.x-k8s.io/")}


def test_every_job_of_the_release_has_the_labels_of_its_queue() -> None:
    """Those of a schedule and those of `mnist-k8s submit` too; not a run's pod, or Kueue would queue it a second time."""
    manifests = render(_QUEUE)
    job, cronjob, pod = (find(manifests, kind) for kind in ("Job", "CronJob", "Pod"))
    assert _of_kueue(job["metadata"]["labels"]) == _LABELS
    assert "suspend" not in job["spec"]  # Kueue sets it, and nobody else may
    template = cronjob["spec"]["jobTemplate"]
    assert _of_kueue(template["metadata"]["labels"]) == _LABELS
    cronjob["metadata"]["uid"] = "1"
    submitted = build_job(cronjob, name="by-hand")
    assert _of_kueue(submitted["metadata"]["labels"]) == _LABELS
    assert "suspend" not in submitted["spec"]
    assert not _of_kueue(job["spec"]["template"]["metadata"]["labels"])
    assert _of_kueue(pod["metadata"]["labels"]) == _LABELS  # of `helm test`: in some namespaces only queued pods run


def test_another_queue_is_another_job_of_the_same_run() -> None:
    """Kueue's webhook refuses to change the labels of a running Job."""
    variants: list[dict[str, Any]] = [
        {},
        {"queueName": "team-queue"},
        {"queueName": "other"},
        _QUEUE,
        _QUEUE | {"queuePriorityClass": "urgent"},
    ]
    rendered = [render(values) for values in variants]
    assert len({find(manifests, "Job")["metadata"]["name"] for manifests in rendered}) == len(variants)
    assert len({run_id(manifests) for manifests in rendered}) == 1


def test_several_workers_are_admitted_all_at_once() -> None:
    """Partial admission would start fewer than the run needs."""
    job = find(render(_QUEUE | {"cluster": {"workers": 2}}), "Job")
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 2
    assert not {"kueue.x-k8s.io/job-min-parallelism", "kueue.x-k8s.io/elastic-job"} & set(
        job["metadata"]["annotations"]
    )


def test_the_node_selector_belongs_to_kueue_and_that_of_the_values_is_an_affinity() -> None:
    """Both would write the field, and a server-side apply would be refused."""
    selector = {"kubernetes.io/os": "linux", "pool": "a"}
    wanted = [{"key": key, "operator": "In", "values": [value]} for key, value in selector.items()]
    zone = {"matchExpressions": [{"key": "zone", "operator": "Exists"}], "matchFields": []}
    named = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}

    def placed(values: dict[str, Any]) -> dict[str, Any]:
        pods = [pod_spec(find(render({"nodeSelector": selector} | values), kind)) for kind in ("Job", "CronJob", "Pod")]
        found = [{name: pod.get(name) for name in ("nodeSelector", "affinity")} for pod in pods]
        assert found == found[:1] * 3
        return found[0]

    def required(*terms: dict[str, Any]) -> dict[str, Any]:
        return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}

    assert placed({}) == {"nodeSelector": selector, "affinity": None}
    assert placed(_QUEUE) == {"nodeSelector": None, "affinity": required({"matchExpressions": wanted})}
    both = placed(_QUEUE | {"affinity": required(zone, named, {}) | {"podAntiAffinity": {}}})["affinity"]
    all_of_zone = {"matchExpressions": [*zone["matchExpressions"], *wanted], "matchFields": []}
    assert both == required(all_of_zone, named | {"matchExpressions": wanted}, {}) | {"podAntiAffinity": {}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"queueName": "team-queue", "suspend": True},
            r'suspend must not be true with queueName, received "team-queue": Kueue .* leave suspend out, .* spec\.active=false',
        ),
        ({"queuePriorityClass": "training"}, r'queuePriorityClass needs queueName, received only "training": name'),
    ],
)
def test_what_contradicts_a_queue_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


def test_a_schedule_with_a_queue_may_be_held() -> None:
    """That suspends the CronJob, and none of its Jobs."""
    cronjob = find(render(_QUEUE | _SCHEDULE | {"suspend": True}), "CronJob")
    assert cronjob["spec"]["suspend"] is True
    assert "suspend" not in cronjob["spec"]["jobTemplate"]["spec"]


def test_names_of_queues_are_those_that_kueue_takes() -> None:
    is_valid = Draft7Validator(_SCHEMA).is_valid
    for name in ("queueName", "queuePriorityClass"):
        assert all(is_valid({name: each}) for each in ("", "a", "team-queue", "team.queue-1", "q" * 63))
        assert not any(is_valid({name: each}) for each in ("A", "-a", "a-", "a..b", "a-.b", "a_b", "q" * 64, None, 1))
