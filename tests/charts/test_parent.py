"""The chart as a dependency of another one: condition, aliases, nameOverride, and what a parent gives to all of its charts."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from job import __version__
from tests.charts.helm import (
    CHART,
    IMAGE,
    Manifest,
    RenderError,
    find,
    make_parent,
    pod_spec,
    render,
    render_text,
    run_id,
)

_WITH_ALL = {
    "image": IMAGE,
    "cluster": {"workers": 2},
    "networkPolicy": {"enabled": True},
    "clientRole": {"create": True, "subjects": [{"kind": "User", "name": "ann"}]},
    "monitoring": {"scrape": "podMonitor"},
}
"""With these each template has something to say."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the chart by its own name and under two aliases."""
    return make_parent(tmp_path_factory.mktemp("charts") / "parent", "", "night", "Day_2")


def _of(manifests: list[Manifest], instance: str) -> list[Manifest]:
    return [each for each in manifests if each["metadata"]["labels"]["app.kubernetes.io/instance"] == instance]


def _names(manifests: list[Manifest]) -> list[str]:
    return [f"{each['kind']}/{each['metadata']['name']}" for each in manifests]


def _selectors(manifests: list[Manifest]) -> list[dict[str, str]]:
    """Of the Service, the NetworkPolicy and the PodMonitor."""
    policy, monitor = find(manifests, "NetworkPolicy")["spec"], find(manifests, "PodMonitor")["spec"]
    peers = policy["ingress"][0]["from"] + policy["egress"][0]["to"]
    return [
        find(manifests, "Service")["spec"]["selector"],
        policy["podSelector"]["matchLabels"],
        monitor["selector"]["matchLabels"],
        *(peer["podSelector"]["matchLabels"] for peer in peers),
    ]


def _pod_labels(manifests: list[Manifest]) -> dict[str, str]:
    labels: dict[str, str] = find(manifests, "Job")["spec"]["template"]["metadata"]["labels"]
    return labels


def test_what_is_switched_off_makes_nothing(parent: Path) -> None:
    for file in sorted((CHART / "ci").glob("*-values.yaml")):
        assert not render({"enabled": False}, files=(file,)), file.name
    off = {"enabled": False}
    assert not render({"mnist-train": off, "night": off, "Day_2": off}, chart=parent)
    assert render({"mnist-train": off, "night": {"image": IMAGE}, "Day_2": off}, chart=parent)


def test_the_chart_by_its_own_name_renders_what_it_renders_alone(parent: Path) -> None:
    """A run that a parent chart has started keeps its id."""
    off = {"enabled": False}
    inside = render({"mnist-train": _WITH_ALL, "night": off, "Day_2": off}, chart=parent)
    assert sorted(map(repr, inside)) == sorted(map(repr, render(_WITH_ALL)))


def test_two_aliases_share_no_name_no_pod_no_volume_and_no_run(parent: Path) -> None:
    manifests = render({"mnist-train": _WITH_ALL, "night": _WITH_ALL, "Day_2": _WITH_ALL}, chart=parent)
    assert len(set(_names(manifests))) == len(manifests)
    instances = sorted({each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in manifests})
    assert instances == ["train", "train-day-2-e0e0ba3d", "train-night"]
    parts = [_of(manifests, instance) for instance in instances]
    assert {len(part) for part in parts} == {len(manifests) // 3}
    assert len({run_id(part) for part in parts}) == 3
    claims = [_claim(find(part, "Job")) for part in parts]
    assert claims == [find(part, "PersistentVolumeClaim")["metadata"]["name"] for part in parts]
    for mine in parts:
        taken = [[selector.items() <= _pod_labels(other).items() for selector in _selectors(mine)] for other in parts]
        assert [all(each) for each in taken] == [any(each) for each in taken] == [other is mine for other in parts]
        for manifest in mine:
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
            if manifest["kind"] != "PodMonitor":
                kubernetes_validate.validate(manifest, "1.37", strict=True)


def _claim(job: Manifest) -> str:
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod_spec(job)["volumes"]
        if len(volume) == 2 and "persistentVolumeClaim" in volume
    ]
    assert len(claims) == 1
    return str(claims[0])


def test_mnist_k8s_finds_each_part_as_a_release_of_its_own(parent: Path) -> None:
    manifests = render({"mnist-train": _WITH_ALL, "night": _WITH_ALL, "Day_2": _WITH_ALL}, chart=parent)
    assert {each["metadata"]["labels"]["app.kubernetes.io/name"] for each in manifests} == {"mnist-train"}
    for manifest in manifests:
        if manifest["kind"] in ("Job", "CronJob", "Pod"):
            [container] = pod_spec(manifest)["containers"]
            release = next(each["value"] for each in container["env"] if each["name"] == "RELEASE")
            assert release == manifest["metadata"]["labels"]["app.kubernetes.io/instance"]


@pytest.mark.security("S1")
def test_an_alias_that_yaml_reads_as_something_else_stays_a_name(tmp_path: Path) -> None:
    aliases = ["1_000", "null", "on", "08", "1e5", "_", "-x-", "A" * 70]
    manifests = render(dict.fromkeys(aliases, _WITH_ALL), chart=make_parent(tmp_path / "parent", *aliases), name="1")
    names = _names(manifests)
    assert len(set(names)) == len(names) == len(aliases) * len(render(_WITH_ALL))
    for manifest in manifests:
        metadata = manifest["metadata"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"])
        assert all(re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", text) for text in metadata["labels"].values())


def test_name_override_is_added_to_the_release_and_the_full_name_wins() -> None:
    def cron(values: dict[str, Any]) -> str:
        return str(find(render(values), "CronJob")["metadata"]["name"])

    assert cron({"nameOverride": "mnist"}) == "train-mnist"
    assert cron({"nameOverride": "mnist", "fullnameOverride": "all"}) == "all"
    assert run_id(render({"nameOverride": "mnist"})).startswith("ml.train-mnist-")
    with pytest.raises(RenderError, match="at '/nameOverride'"):
        render({"nameOverride": "a.b"})


def test_a_parent_names_the_registry_and_its_secrets(parent: Path) -> None:
    off = {"enabled": False}
    everything = {
        "imageRegistry": "mirror.example:5000/proxy",
        "imagePullSecrets": ["one", {"name": "two"}],
        "storageClass": "fast",
        "nested": {"anything": [1, None]},
    }
    own = {"image": IMAGE, "imagePullSecrets": [{"name": "own"}, {"name": "two"}]}
    given = {"mnist-train": own, "night": off, "Day_2": off}
    for manifest in render(given | {"global": everything}, chart=parent):
        if manifest["kind"] in ("Job", "CronJob", "Pod"):
            pod = pod_spec(manifest)
            assert pod["containers"][0]["image"] == f"mirror.example:5000/proxy/mnist-train:{__version__}"
            assert pod["imagePullSecrets"] == [{"name": "own"}, {"name": "two"}, {"name": "one"}]
    for harmless in ({"storageClass": "fast", "nested": {}}, {"imageRegistry": "", "imagePullSecrets": []}, None):
        assert render_text({"global": harmless}) == render_text()
    only_null = {"imageRegistry": None, "imagePullSecrets": None}
    assert render(given | {"global": only_null}, chart=parent) == render(given, chart=parent)


@pytest.mark.parametrize(
    ("repository", "image"),
    [
        ("registry.example/team/mnist-train", f"m.example/team/mnist-train:{__version__}"),
        ("localhost/mnist-train", f"m.example/mnist-train:{__version__}"),
        ("registry:5000/mnist-train", f"m.example/mnist-train:{__version__}"),
        ("team/mnist-train", f"m.example/team/mnist-train:{__version__}"),
        ("mnist-train", f"m.example/mnist-train:{__version__}"),
    ],
)
def test_the_registry_of_the_parent_stands_in_place_of_the_host_of_the_image(repository: str, image: str) -> None:
    values = {"image": {"repository": repository}, "global": {"imageRegistry": "m.example"}}
    assert pod_spec(find(render(values), "Job"))["containers"][0]["image"] == image


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"imageRegistry": "a b"}, "at '/global/imageRegistry'"),
        ({"imageRegistry": "m.example/"}, "at '/global/imageRegistry'"),
        ({"imagePullSecrets": "one"}, "at '/global/imagePullSecrets'"),
        ({"imagePullSecrets": [{"name": "one", "key": "x"}]}, "at '/global/imagePullSecrets/0'"),
        ({"imagePullSecrets": ["a: b"]}, "at '/global/imagePullSecrets/0'"),
    ],
)
def test_what_is_read_of_global_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render({"global": given})
