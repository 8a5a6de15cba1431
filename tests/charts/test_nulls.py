"""A value set to null is its default, or is refused by one line; and the values of an older chart still render."""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.helm import CHART, IMAGE, Manifest, RenderError, find, make_parent, pod_spec, render, run_id

_DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
_FREE = ("podLabels", "podAnnotations", "nodeSelector", "requests", "limits")
"""Maps whose keys users choose: an entry that is null is left out."""
_OWN_MEANING = ("runAsUser",)
_REQUIRED = ("image", "image.repository")
_OLDEST = Path(__file__).parent / "values-0.1.0.yaml"


def _paths(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of each leaf and of each map."""
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))


_PATHS = [path for path in _paths(_DEFAULTS) if ".".join(path) not in (*_OWN_MEANING, *_REQUIRED)]
_TO_DEFAULT = [path for path in _PATHS if len(path) < 2 or path[-2] not in _FREE]
_LEFT_OUT = [path for path in _PATHS if path not in _TO_DEFAULT]


def _with_nulls(*paths: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {"image": dict(IMAGE)}
    for path in paths:
        node = values
        for name in path[:-1]:
            node = node.setdefault(name, {})
            if node is None:
                break
        else:
            node[path[-1]] = None
    return values


def test_all_nulls_at_once_are_the_defaults() -> None:
    leaves = [path for path in _TO_DEFAULT if not any(path == other[: len(path)] != other for other in _TO_DEFAULT)]
    assert render(_with_nulls(*leaves)) == render()
    assert render(_with_nulls(*(path for path in _TO_DEFAULT if len(path) == 1))) == render()


def test_each_null_is_the_default_alone_and_in_pairs(tmp_path: Path, is_full: bool) -> None:
    """In one render of a parent chart that has this chart under an alias for each."""
    source = random.Random(20261126)
    pairs = [tuple(source.sample(_TO_DEFAULT, 2)) for _ in range(200 if is_full else 10)]
    cases = {f"a{index}": each for index, each in enumerate([(), *((path,) for path in _TO_DEFAULT), *pairs])}
    parent = make_parent(tmp_path / "parent", *cases)
    found: dict[str, list[Manifest]] = {alias: [] for alias in cases}
    for manifest in render({alias: _with_nulls(*paths) for alias, paths in cases.items()}, chart=parent):
        found[manifest["metadata"]["labels"]["app.kubernetes.io/instance"].removeprefix("train-")].append(manifest)
    expected = _without_names(found["a0"], "a0")
    assert expected
    assert [cases[alias] for alias in cases if _without_names(found[alias], alias) != expected] == []


def _without_names(manifests: list[Manifest], alias: str) -> list[str]:
    """The id of the run, and all that is rendered but for the names; a Job's name follows all others."""
    texts = [re.sub(r"-[0-9a-f]{8}'", "'", repr(manifest).replace(f"train-{alias}", "train")) for manifest in manifests]
    return [run_id(manifests).removeprefix(f"ml.train-{alias}"), *sorted(texts)]


def test_a_null_of_the_users_own_keys_leaves_them_out() -> None:
    manifests = render(_with_nulls(*_LEFT_OUT, *((name,) for name in _OWN_MEANING)))
    pod = pod_spec(find(manifests, "Job"))
    assert pod["containers"][0]["resources"] == {"requests": {}, "limits": {}}
    assert "sidecar.istio.io/inject" not in find(manifests, "Pod")["metadata"]["labels"]
    assert "runAsUser" not in pod["securityContext"]  # null has a meaning of its own there


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": None}, r"image\.repository must name your image"),
        ({"image": {"repository": None}}, r"image\.repository must name your image"),
        ({"extraEnv": [None]}, "at '/extraEnv/0': got null, want object"),
        ({"podLabels": {"team": None}}, "at '/podLabels/team': got null, want string"),
        ({"resources": {"limits": {"nvidia.com/gpu": None}}}, "at '/resources/limits/nvidia.com~1gpu': got null"),
    ],
)
def test_other_nulls_are_refused_by_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render(values)


def test_an_upgrade_from_the_values_of_0_1_0_renders_as_reuse_values_merges_them(tmp_path: Path) -> None:
    """`--reuse-values` puts all values of the old chart, and no new one, in place of this chart's own."""
    chart = shutil.copytree(CHART, tmp_path / "mnist-train")
    shutil.copy(_OLDEST, chart / "values.yaml")
    assert render({"image": IMAGE}, chart=chart) == render()
    own = {
        "schedule": "@daily",
        "activeDeadlineSeconds": 7200,
        "networkPolicy": {"enabled": True},
        "podLabels": {"a": "b"},
    }
    assert render({"image": IMAGE} | own, chart=chart) == render(own)
