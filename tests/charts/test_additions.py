"""What users add to the chart's objects: labels, annotations, containers, whole objects; where it lands, and what is refused."""

from typing import Any

import kubernetes_validate
import pytest

from tests.charts.helm import Manifest, RenderError, find, job_spec, render

_EVERYTHING: dict[str, Any] = {
    "cluster": {"workers": 2},
    "networkPolicy": {"enabled": True},
    "clientRole": {"create": True, "subjects": [{"kind": "User", "name": "ann"}]},
    "monitoring": {"scrape": "podMonitor"},
}
"""Each object that the chart can make."""
_KINDS = {
    *("CronJob", "Job", "NetworkPolicy", "PersistentVolumeClaim", "Pod", "PodMonitor", "Role", "RoleBinding", "Service"),
    "ServiceAccount",
}


def _validate(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["kind"] != "PodMonitor":
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def _metadata(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Of every object, by its kind; and of the pods and Jobs that these make."""
    found = {each["kind"]: each["metadata"] for each in manifests}
    found["Job's pods"] = job_spec(find(manifests, "Job"))["template"]["metadata"]
    cron = find(manifests, "CronJob")
    found["CronJob's Jobs"] = cron["spec"]["jobTemplate"]["metadata"]
    found["CronJob's pods"] = job_spec(cron)["template"]["metadata"]
    return found


def _without_metadata(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_metadata(each) for each in node]
    if isinstance(node, dict):
        return {key: _without_metadata(each) for key, each in node.items() if key != "metadata"}
    return node


def test_common_labels_and_annotations_are_on_every_object_and_in_no_selector() -> None:
    common = {"commonLabels": {"team": "vision", "cost": "007"}, "commonAnnotations": {"owner": "ann\n- b: c", "on": "true"}}
    before, after = render(_EVERYTHING), render(_EVERYTHING | common)
    _validate(after)
    assert {each["kind"] for each in after} == _KINDS
    for name, metadata in _metadata(after).items():
        old = _metadata(before)[name]
        assert metadata["labels"] == old["labels"] | common["commonLabels"], name
        assert metadata["annotations"] == old.get("annotations", {}) | common["commonAnnotations"], name
    assert _without_metadata(after) == _without_metadata(before)


def test_labels_of_fewer_objects_win_over_common_ones_and_the_charts_own_over_all() -> None:
    own = {"app.kubernetes.io/name": "mine", "app.kubernetes.io/instance": "mine", "app.kubernetes.io/managed-by": "me"}
    values = _EVERYTHING | {
        "commonLabels": own | {"team": "all"},
        "commonAnnotations": {"owner": "all", "helm.sh/resource-policy": "delete"},
        "jobLabels": own | {"team": "job"},
        "jobAnnotations": {"owner": "job"},
        "podLabels": {"team": ""},
        "podAnnotations": {"owner": "pod"},
        "monitoring": {"scrape": "podMonitor", "labels": {"team": "monitor"}},
        "persistence": {"labels": {"team": "volume"}, "annotations": {"owner": "volume"}},
        "serviceAccount": {"annotations": {"owner": "account"}},
    }
    manifests = render(values)
    _validate(manifests)
    found = _metadata(manifests)
    assert {each["labels"]["app.kubernetes.io/name"] for each in found.values()} == {"mnist-train"}
    assert {each["labels"]["app.kubernetes.io/instance"] for each in found.values()} == {"train"}
    teams = {name: each["labels"]["team"] for name, each in found.items()}
    jobs, pods = ("Job", "CronJob", "CronJob's Jobs"), ("Pod", "Job's pods", "CronJob's pods")
    special = dict.fromkeys(jobs, "job") | dict.fromkeys(pods, "") | {"PodMonitor": "monitor", "PersistentVolumeClaim": "volume"}
    assert teams == dict.fromkeys(found, "all") | special
    owners = dict.fromkeys(jobs, "job") | dict.fromkeys(pods, "pod")
    owners |= {"PersistentVolumeClaim": "volume", "ServiceAccount": "account"}
    assert {name: each["annotations"]["owner"] for name, each in found.items()} == dict.fromkeys(found, "all") | owners
    assert found["PersistentVolumeClaim"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert found["Job"]["annotations"]["mnist-train/run"].startswith("ml.train-")


def test_labels_of_the_job_itself_make_no_other_job() -> None:
    """They can be changed in place, unlike those of its pods."""
    plain = find(render(), "Job")
    added = find(render({"jobLabels": {"a": "b"}, "jobAnnotations": {"a": "b"}}), "Job")
    assert (added["metadata"]["name"], added["spec"]) == (plain["metadata"]["name"], plain["spec"])
    assert find(render({"commonLabels": {"a": "b"}}), "Job")["metadata"]["name"] != plain["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "key", "way_out"),
    [
        ("jobLabels", "kueue.x-k8s.io/queue-name", "set queueName"),
        ("podLabels", "batch.kubernetes.io/job-name", "leave it out"),
        ("commonLabels", "controller-uid", "leave it out"),
        ("commonAnnotations", "helm.sh/hook", "leave it out"),
        ("persistence.annotations", "helm.sh/hook-weight", "leave it out"),
        ("jobAnnotations", "mnist-train/run", "leave it out"),
    ],
)
def test_keys_that_mean_something_to_the_cluster_are_refused(name: str, key: str, way_out: str) -> None:
    section, _, field = name.partition(".")
    with pytest.raises(RenderError, match=f"{name} must not hold {key}.*{way_out}"):
        render({section: {field: {key: "x"}} if field else {key: "x"}})


@pytest.mark.security("S2")
def test_common_annotations_do_not_turn_off_what_confines_a_pod() -> None:
    for key in ("container.apparmor.security.beta.kubernetes.io/train", "seccomp.security.alpha.kubernetes.io/pod"):
        with pytest.raises(RenderError, match="at '/commonAnnotations"):
            render({"commonAnnotations": {key: "unconfined"}})
