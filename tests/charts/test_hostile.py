"""S1: whatever text a value holds, it changes its own leaf of the manifests and nothing else."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.charts.helm import CHART, Manifest, RenderError, notes, render

pytestmark = pytest.mark.security("S1")

_CRAFTED = (
    "{{ .Release.Name }}",
    '{{ fail "executed" }}',
    "{{- range $i := until 5 }}x{{ end -}}",
    "$(POD_NAME)",
    "$$(JOB_NAME) $ $$ $$$(A)",
    "`id` $(id) ; rm -rf / | cat && true",
    '"', "'", '"]', '", "--store.uri=s3://evil', "\\", '\\"', "\\n", "\\u0022",
    ": ", "a: b", "- a", "# comment", " #", "&a", "*a", "!!python/object:os.system", "!tag", "|", ">", "?", "%YAML 1.1",
    "@at", "[a", "{a", "a}", "]]", "<<", "~", "null", "true", "yes", "no", "0x1F", "1e3", "1_000", "0o17", "12:30:45", ".inf",
    "2026-01-01", "---", "...", "--- !!map", "  leading", "trailing  ", "--", "--train.epochs=1", "-x", "=",
    "<script>", "&amp;", "\u00e4\u6f22\U0001f600", "\u202e reversed", "\u00a0", "x" * 90,
)  # fmt: skip
_MULTILINE = ("a\nb", "a\n---\nkind: ClusterRole\n", "\n", "\ta", "a\r\nb", "a\n  privileged: true", "'\n\"\n")
_REFUSED = ("a\x00b", "\x1b[31m", "\x7f", "a\x85b", "a\u2028b", "\ufeffa")
_SETTINGS = (
    "data.uri", "data.cache_dir", "store.uri", "store.endpoint", "store.region", "observe.pushgateway_url",
    "observe.termination_log",
)  # fmt: skip
_FORMS = {
    "store.uri": "s3://bucket/{}",
    "store.endpoint": "http://host/{}",
    "observe.pushgateway_url": "http://host/{}",
    "data.uri": "/d/{}",
    "data.cache_dir": "/c/{}",
    "observe.termination_log": "/t/{}",
}
"""Settings that take no other text; and of that not all."""
_HASH = re.compile(r"-[0-9a-f]{8}(?![0-9a-f])")


def _strings() -> list[str]:
    source = random.Random(20261124)
    alphabet = "".join(_CRAFTED[:52]) + " \u00e9\u4e2d"
    return [*_CRAFTED, *("".join(source.choices(alphabet, k=source.randint(1, 40))) for _ in range(100))]


def _values(texts: list[str], free: list[str]) -> dict[str, Any]:
    """One text for each setting, and all of `free` for each place that takes many."""
    values: dict[str, Any] = {"cluster": {"workers": 2}}  # then each template has something to say
    for name, text in zip(_SETTINGS, texts, strict=True):
        section, field = name.split(".")
        values.setdefault(section, {})[field] = _FORMS.get(name, "{}").replace("{}", text)
    values["extraEnv"] = [{"name": f"V{index}", "value": text} for index, text in enumerate(free)]
    for section in ("podAnnotations", "serviceAccount"):
        annotations = {f"key-{index}": text for index, text in enumerate(free)}
        values[section] = annotations if section == "podAnnotations" else {"annotations": annotations}
    values["commonAnnotations"] = {f"common-{index}": text for index, text in enumerate(free) if index % 10 == 0}
    values["initContainers"] = [{"name": "side", "image": "side:1", "command": free}]
    values["extraObjects"] = [
        {"apiVersion": "a.example/v1", "kind": "Any", "metadata": {"name": "any"}, "spec": {"texts": free}}
    ]
    return values


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}/{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}/{index}")
    else:
        yield path, node


def test_hostile_text_changes_its_own_leaf_only() -> None:
    strings = _strings()
    num_settings = len(_SETTINGS)
    benign_texts = [f"benign{index}x" for index in range(num_settings)]
    benign_free = [f"free{index}x" for index in range(len(strings + list(_MULTILINE)))]
    before = dict(_leaves(render(_values(benign_texts, benign_free))))
    for shift in range(0, len(strings), 5):
        texts = [strings[(shift + 7 * index) % len(strings)] for index in range(num_settings)]
        texts = [
            re.sub(r"[/?#%\\\s]", "", text) or "x" if name in _FORMS else text
            for name, text in zip(_SETTINGS, texts, strict=True)
        ]
        free = [*strings, *_MULTILINE]
        meaning = dict(zip(benign_texts, texts, strict=True)) | dict(zip(benign_free, free, strict=True))
        after = dict(_leaves(render(_values(texts, free))))
        assert after.keys() == before.keys()
        for path, leaf in before.items():
            expected = leaf
            if isinstance(leaf, str):
                name = re.search(r"(benign|free)\d+x", leaf)
                if name:
                    text = meaning[name[0]]
                    expected = leaf.replace(name[0], text.replace("$", "$$") if "/args/" in path else text)
            if isinstance(expected, str) and not re.search(r"(benign|free)\d+x", str(leaf)):
                assert _HASH.sub("", str(after[path])) == _HASH.sub("", expected), path
            else:
                assert after[path] == expected, path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (name, _REFUSED[index % len(_REFUSED)])
        for index, name in enumerate([*_SETTINGS, "extraEnv", "podAnnotations"] * 2)
    ],
)
def test_text_that_yaml_would_change_is_refused(name: str, text: str) -> None:
    section, _, field = name.partition(".")
    values: dict[str, Any] = {section: {field or "key": _FORMS.get(name, "{}").replace("{}", text)}}
    if name == "extraEnv":
        values = {"extraEnv": [{"name": "A", "value": text}]}
    with pytest.raises(RenderError, match="does not match pattern"):
        render(values)


@pytest.mark.parametrize(
    "path",
    [
        "image.repository", "image.tag", "image.digest", "clusterName", "fullnameOverride", "timeZone",
        "credentials.existingSecret", "serviceAccount.name", "queueName", "priorityClassName", "runtimeClassName",
        "persistence.existingClaim", "persistence.size", "persistence.storageClassName", "run.suffix", "promotion.model_name",
        "run.id", "data.source", "data.dataset", "model.build",
    ],
)  # fmt: skip
def test_names_take_names_only(path: str) -> None:
    for text in ("{{ .Release.Name }}", 'a"b', "a\nb"):
        section, _, field = path.partition(".")
        with pytest.raises(RenderError, match="don't meet the specifications of the schema"):
            render({section: {field: text}} if field else {section: text})


def _values_of_names(name: str) -> dict[str, Any]:
    """The name wherever a value is one; with a schedule, or with a run, a PVC and workers."""
    return {
        "fullnameOverride": name,
        "clusterName": name,
        "image": {"repository": name, "tag": name},
        "imagePullSecrets": [{"name": name}],
        "credentials": {"existingSecret": name},
        "serviceAccount": {"name": name},
        "clientRole": {"create": True, "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": name}]},
        "persistence": {"cache": True, "storageClassName": name},
        "queueName": name,
        "priorityClassName": name,
        "runtimeClassName": name,
        "nodeSelector": {name: name, "kubernetes.io/os": None},
        "tolerations": [{"key": name, "operator": "Equal", "value": name}],
        "podLabels": {name: name},
        "podAnnotations": {name: name},
        "monitoring": {"scrape": "podMonitor", "labels": {name: name}},
        "extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": name}}}],
        "extraVolumes": [{"name": name, "persistentVolumeClaim": {"claimName": name}}],
        "extraVolumeMounts": [{"name": name, "mountPath": f"/{name}"}],
        "networkPolicy": {"enabled": True},
        "cluster": {"workers": 2},
    }


_NAMES = ("123", "on", "no", "true", "null", "1e5", "0x1f", "08", "12-30", "y")
_SCHEDULED = {"schedule": "@daily", "activeDeadlineSeconds": 7200}


@pytest.mark.parametrize("more", [{}, _SCHEDULED], ids=["run", "schedule"])
def test_a_name_that_yaml_reads_as_something_else_stays_a_name(more: dict[str, Any]) -> None:
    """As the release, the namespace and each name in the values: `0x1f` made the objects of another release, 31."""
    values = _values_of_names("plain") | more
    plain = _without_hashes(render(values, name="plain", namespace="plain"))
    for name in _NAMES:
        mine = json.loads(json.dumps(values).replace("plain", name))
        found = _without_hashes(render(mine, name=name, namespace=name))
        assert json.loads(found) == json.loads(plain.replace("plain", name)), name


def test_the_commands_of_the_notes_name_what_is_made() -> None:
    """Each object that NOTES.txt gives to kubectl or mnist-k8s, with names that YAML reads as something else."""
    for name in ("0x1f", "a" * 50):
        for more in ({}, {"cluster": {"workers": 2}}, _SCHEDULED, _SCHEDULED | {"cluster": {"workers": 2}}):
            manifests = render(more, name=name, namespace="1234")
            names = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in manifests}
            labels = [each["metadata"]["labels"].items() for each in manifests]
            commands = [
                line.split() for line in notes(more, name=name, namespace="1234").splitlines() if line[:2] == "  "
            ]
            assert commands
            for command in commands:
                text = " ".join(command)
                assert re.search(r"-n 1234\b", text), text
                assert {
                    word.removeprefix("--from=") for word in command if re.search(r"^(--from=)?\w+/", word)
                } <= names, text
                for selector in re.findall(r"-l app.kubernetes.io/instance=(\S+)", text):
                    assert all(("app.kubernetes.io/instance", selector) in each for each in labels), text
                for job in re.findall(r"job-name=([^ ,]+)|status -n 1234 (\S+)", text):
                    assert f"job/{job[0] or job[1]}" in names | {"job/NAME"}, text
            made = [command[-1] for command in commands if "--from=cronjob" in " ".join(command)]
            assert all(len(each) <= 63 for each in made)


def _without_hashes(manifests: list[Manifest]) -> str:
    return re.sub(r"-[0-9a-f]{8}\b", "", json.dumps(manifests))


def test_no_value_is_a_template() -> None:
    templates = [path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()]
    assert templates
    assert not [text for text in templates if re.search(r"\btpl\b", text)]
