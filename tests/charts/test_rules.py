"""The PrometheusRule of the chart: for its own release alone, with the user's thresholds and severities; and the runbook."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.charts.helm import CHART, RenderError, find, render
from tests.conftest import REPOSITORY

_SOURCE: dict[str, Any] = yaml.safe_load((CHART / "files" / "rules.yaml").read_text("utf-8"))
_ALL: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in _SOURCE["groups"] for rule in group["rules"]}
_PLAIN = CHART / "files" / "mnist-train.rules.yaml"
_NIGHTS: dict[str, Any] = {
    "schedule": "0 3 * * *",
    "activeDeadlineSeconds": 3600,
    "observe": {"pushgateway_url": "http://gateway:9091"},
}
_SELECTOR = re.compile(r'\b(?:mnist_train|kube|push|process)_\w+(\{(?:[^}"]|"[^"]*")*\})?')


def _values(scrape: str = "podMonitor", **rules: Any) -> dict[str, Any]:
    return _NIGHTS | {"monitoring": {"scrape": scrape, "rules": {"enabled": True} | rules}}


def _rules(values: dict[str, Any], *, name: str = "train", namespace: str = "ml") -> dict[str, dict[str, Any]]:
    """Alert -> rule, as the operator gives it to Prometheus."""
    groups = find(render(values, name=name, namespace=namespace), "PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert "PrometheusRule" not in [each["kind"] for each in render(_NIGHTS)]
    assert _rules(_values()).keys() == _ALL.keys()


@pytest.mark.parametrize("scrape", ["podMonitor", "annotations"])
def test_every_series_is_that_of_the_release(scrape: str) -> None:
    for namespace, name in (("ml", "train"), ("ops", "train-b")):
        is_ours = re.compile(
            rf'job="{namespace}/{name}",|namespace="{namespace}",(release="{name}"|cronjob="{name}"|job_name=~"{name}-\[|pod=~"{name}-\()'
        )
        for alert, rule in _rules(_values(scrape), name=name, namespace=namespace).items():
            selectors = _SELECTOR.findall(rule["expr"])
            assert selectors, alert
            assert all(is_ours.search(matchers) for matchers in selectors), (alert, rule["expr"])


def test_pods_and_jobs_of_a_release_with_a_longer_name_are_not_taken_for_its_own() -> None:
    exprs = " ".join(rule["expr"] for rule in _rules(_values("annotations")).values())
    jobs, pods = (set(re.findall(rf'{label}=~"(train[^"]*)"', exprs)) for label in ("job_name", "pod"))
    (job,), (pod,) = jobs, pods
    assert re.fullmatch(job, "train-29123456")
    assert not any(re.fullmatch(job, name) for name in ("train-b-29123456", "train-bcdfghjklm", "train-0a1b2c3d4e"))
    ours = ("train-29123456-x2x4z", "train-0123abcd-x2x4z", "train-bcdfghjklm-x2x4z", "train-29123456-1-x2x4z")
    assert all(re.fullmatch(pod, name) for name in ours)
    others = (
        "train-nightly1-29123456-x2x4z",
        "train-b-29123456-x2x4z",
        "train-bind-0123abcd-x2x4z",
        "other-29123456-x2x4z",
    )
    assert not any(re.fullmatch(pod, name) for name in others)


def test_thresholds_severities_and_labels_are_the_users() -> None:
    rules = _rules(
        _values(
            thresholds={"failures": 5, "periodSeconds": 604800, "accuracyDrop": 0.05, "refusals": None},
            severities={"MnistTrainFailures": "page", "MnistTrainMemory": "none"},
            alertLabels={"team": "vision", "severity": "mine"},
            runbookUrl="https://docs.example/operations.md",
        )
    )
    assert ">= 5)" in rules["MnistTrainFailures"]["expr"]
    assert "> 2 * 604800" in rules["MnistTrainNoSuccess"]["expr"]
    assert rules["MnistTrainNeverSucceeded"]["for"] == "604800s"
    assert "> 0.05)" in rules["MnistTrainAccuracyBelowChampion"]["expr"]
    assert ">= 3)" in rules["MnistTrainRefused"]["expr"]
    assert rules["MnistTrainFailures"]["labels"] == {"severity": "page", "team": "vision", "release": "train"}
    assert rules["MnistTrainRefused"]["labels"]["severity"] == "warning"
    assert "MnistTrainMemory" not in rules
    assert rules["MnistTrainStalled"]["annotations"]["runbook_url"] == "https://docs.example/operations.md#stalled"


def test_without_an_alert_there_is_no_object() -> None:
    values = _values(severities=dict.fromkeys(_ALL, "none"))
    assert "PrometheusRule" not in [each["kind"] for each in render(values)]


def test_thresholds_that_are_left_alone_follow_the_settings() -> None:
    slow = {"observe": _NIGHTS["observe"] | {"stall_timeout_seconds": 1000}, "checkpoint": {"interval_seconds": 60}}
    rules = _rules(_values() | slow)
    assert "> 800)" in rules["MnistTrainStalled"]["expr"]
    assert "> 1200)" in rules["MnistTrainOldCheckpoint"]["expr"]
    assert "> 3600)" in rules["MnistTrainNoEnd"]["expr"]
    plain = _rules(_values() | {"activeDeadlineSeconds": 7200})
    for alert, names in {"Stalled": "stalled", "OldCheckpoint": "oldCheckpoint", "NoEnd": "end"}.items():
        assert f"> {_SOURCE['thresholds'][f'{names}Seconds']})" in plain[f"MnistTrain{alert}"]["expr"]


def test_alerts_that_nothing_could_fire_are_left_out() -> None:
    def parts(values: dict[str, Any]) -> set[str]:
        found = _rules(values).keys()
        assert found <= _ALL.keys()
        return {group["name"] for group in _SOURCE["groups"] for rule in group["rules"] if rule["alert"] in found}

    assert parts(_values() | {"schedule": "", "activeDeadlineSeconds": None}) == {"run"}
    assert parts(_values() | {"suspend": True}) == {"run"}
    assert parts(_values() | {"observe": {}}) == {"schedule-kube", "run"}
    silent = _rules(_values("none") | {"observe": _NIGHTS["observe"] | {"metrics_port": 0}})
    assert "MnistTrainKubeOutOfMemory" in silent
    assert "MnistTrainStalled" not in silent


@pytest.mark.security("S1")
@pytest.mark.parametrize(
    "rules",
    [
        {"severities": {"MnistTrainTypo": "none"}},
        {"severities": {"MnistTrainFailures": '{{ query "up" }}'}},
        {"thresholds": {"failure": 3}},
        {"thresholds": {"failures": 0}},
        {"thresholds": {"failures": "2) or vector(1"}},
        {"thresholds": {"accuracyDrop": 2}},
        {"thresholds": {"memoryRatio": "0.9} or up{"}},
        {"alertLabels": {"alertname": "mine"}},
        {"alertLabels": {"team": "{{ $value }}"}},
        {"alertLabels": {"a-b": "c"}},
        {"runbookUrl": "javascript:alert(1)"},
        {"runbookUrl": "https://a.example/{{ $labels.pod }}"},
        {"unknown": True},
    ],
    ids=str,
)
def test_what_is_no_rule_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match=r"monitoring|invalid propertyName"):
        render(_values(**rules))


def test_the_schema_knows_each_alert_and_each_threshold() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    fields = schema["properties"]["monitoring"]["properties"]["rules"]["properties"]
    assert list(fields["severities"]["properties"]) == list(_ALL)
    assert list(fields["thresholds"]["properties"]) == list(_SOURCE["thresholds"])
    thresholds = Draft7Validator(fields["thresholds"])
    assert thresholds.is_valid(_SOURCE["thresholds"])


def test_prometheus_reads_what_helm_and_generate_make(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH (Debian: the package prometheus)")
    for number, scrape in enumerate(("podMonitor", "annotations")):
        spec = find(render(_values(scrape)), "PrometheusRule")["spec"]
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(spec))
    files = [str(path) for path in (_PLAIN, *tmp_path.glob("*.yaml"))]
    done = subprocess.run([promtool, "check", "rules", *files], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.count(f"SUCCESS: {len(_ALL)} rules found")) == (0, 3), done.stderr


def test_the_plain_rules_are_for_another_release_after_what_their_first_lines_say() -> None:
    plain = _PLAIN.read_text("utf-8")
    (script,) = re.findall(r"^#     sed '(.+)' mnist-train.rules.yaml$", plain, re.MULTILINE)
    command = ["sed", script.replace("NAME", "night"), str(_PLAIN)]
    changed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for text, name in ((plain, "train"), (changed, "night")):
        rules = [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
        named = re.findall(r'(\w+)=~?"(train|night)(?:-[^"]*)?"', " ".join(rules).replace('phase="train"', ""))
        assert {label for label, _ in named} == {"cronjob", "job_name", "pod", "container"}
        assert {each for label, each in named if label != "container"} == {name}


def test_nothing_is_left_to_fill_in_and_every_number_is_used() -> None:
    source, made = (CHART / "files" / "rules.yaml").read_text("utf-8"), json.dumps(_rules(_values()))
    assert not re.search(r"\[\[\w+\]\]", made + _PLAIN.read_text("utf-8"))
    assert all(f"[[{name}]]" in source for name in _SOURCE["thresholds"])


@pytest.mark.parametrize("alert", _ALL)
def test_every_alert_says_what_is_wrong_and_has_a_runbook(alert: str) -> None:
    rule, text = _ALL[alert], (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    assert rule["severity"] in ("critical", "warning", "info")
    assert "{{ $labels." in rule["summary"]
    assert "{{ $" in rule["description"]
    sections = dict(re.findall(r"^### (.+?)\n\n(.+?)(?=^##)", text, re.DOTALL | re.MULTILINE))
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): body for title, body in sections.items()}
    assert re.search(r"First:\s+`[^`]+`", anchors[rule["runbook"]]), "the first command to run"


def test_every_series_of_the_job_is_one_that_it_has() -> None:
    table = (REPOSITORY / "docs" / "reference.md").read_text("utf-8").partition("<!-- series:")[2]
    known = {
        name: set((labels or "{}")[1:-1].split(",")) for name, labels in re.findall(r"\| `(\w+)(\{[^}]*\})?`", table)
    }
    own = {
        "namespace",
        "release",
        "model",
        "origin",
        "job",
        "pod",
    }  # of the group on the Pushgateway, and of Prometheus
    for rule in _ALL.values():
        for name, matchers in re.findall(r"\b((?:mnist_train|process)_\w+)\{([^}]*)\}", rule["expr"]):
            assert name in known, rule["alert"]
            labels = set(re.findall(r"(\w+)[=!]~?\"", re.sub(r"\[\[\w+\]\]", "", matchers)))
            assert labels <= known[name] | own, rule["alert"]
