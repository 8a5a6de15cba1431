"""The dashboard: JSON that Grafana imports, series that exist, expressions that Prometheus parses, a ConfigMap for a sidecar."""

import json
import re
import shutil
import subprocess
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from generators.reference import make_series

from tests.charts.dashboard import FILE, Json, Query, read_dashboard, read_panels, read_queries, read_variables
from tests.charts.helm import RenderError, find, render
from tests.conftest import REPOSITORY

_OF_GRAFANA = {"__rate_interval", "__all"}
_OF_TARGETS = {"job", "instance", "namespace", "worker", "release", "model", "origin", "le"}
"""Labels that Prometheus, the chart and the group of a push add to every series."""
_SERIES = re.compile(r"\b(?:mnist_train_|process_)\w+")


@cache
def _series() -> dict[str, set[str]]:
    """Name -> its labels, of every series that job/observe/metrics.py makes."""
    rows = re.findall(r"^\| `(\w+)(?:\{([\w,]*)\})?`", make_series(), re.MULTILINE)
    assert len(rows) > 30
    found = {name: set(filter(None, labels.split(","))) for name, labels in rows}
    return found | {"mnist_train_step_seconds_bucket": {"le"}}


@pytest.mark.parametrize("query", read_queries(), ids=lambda query: f"{query.panel}-{query.legend}")
def test_series_and_labels_of_a_query_are_made_by_the_job(query: Query) -> None:
    known = _series()
    named = set(_SERIES.findall(query.expression))
    assert named
    assert named <= set(known)
    labels = set().union(*(known[name] for name in named)) | _OF_TARGETS
    assert set(re.findall(r"{{(\w+)}}", query.legend)) <= labels
    assert set(re.findall(r"(\w+)=~?\"", query.expression)) <= labels


def test_variables_are_defined_and_each_is_used() -> None:
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text("utf-8")))
    assert used - _OF_GRAFANA == set(read_variables())
    for variable in read_dashboard()["templating"]["list"]:
        assert set(_SERIES.findall(variable.get("definition", ""))) <= set(_series())


@pytest.mark.parametrize("panel", read_panels(), ids=lambda panel: panel["title"])
def test_panel_has_unit_description_and_legends(panel: Json) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert all(target["legendFormat"] for target in panel["targets"])
    assert panel["datasource"]["uid"] == "${datasource}"


def test_no_panel_covers_another() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in read_dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= 24 for _, place in places)
    assert [(one, other) for (one, a), (other, b) in combinations(places, 2) if _overlap(a, b)] == []


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return all(a[at] < b[at] + b[size] and b[at] < a[at] + a[size] for at, size in (("x", "w"), ("y", "h")))


def test_titles_are_unique_as_the_documents_name_panels_by_them() -> None:
    titles = [panel["title"] for panel in read_dashboard()["panels"]]
    assert len(set(titles)) == len(titles)


def test_panels_that_the_documents_name_exist() -> None:
    page = (REPOSITORY / "docs" / "monitoring.md").read_text("utf-8")
    named = set(re.findall(r"\*\*(.+?)\*\*", page))
    assert len(named) > 5
    assert named <= {panel["title"] for panel in read_panels()}


def test_prometheus_parses_every_expression(tmp_path: Path) -> None:
    done = _check_rules(tmp_path, [query.expression for query in read_queries()])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(read_queries())} rules found" in done.stdout


def test_an_expression_with_a_mistake_is_found(tmp_path: Path) -> None:
    assert "parse error" in _check_rules(tmp_path, ["sum by (le (rate(mnist_train_loss[1m]))"]).stderr


def _check_rules(folder: Path, expressions: list[str]) -> subprocess.CompletedProcess[str]:
    """What promtool says of them as rules."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH (Debian: apt-get install prometheus)")
    rules = [{"record": f"query:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    path = folder / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [str(promtool), "check", "rules", "--lint=none", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_config_map_is_off_by_default_and_holds_the_file_as_it_is() -> None:
    assert [each for each in render() if each["kind"] == "ConfigMap"] == []
    dashboard = {
        "enabled": True,
        "labels": {"grafana_dashboard": "team"},
        "annotations": {"grafana_folder": "Training"},
    }
    made = find(render({"monitoring": {"dashboard": dashboard}, "commonLabels": {"team": "ml"}}), "ConfigMap")
    assert json.loads(made["data"]["mnist-train.json"]) == read_dashboard()
    assert "{{release}}" in made["data"]["mnist-train.json"]
    metadata = made["metadata"]
    assert (metadata["name"], metadata["annotations"]) == ("train-dashboard", {"grafana_folder": "Training"})
    assert metadata["labels"].items() >= {"grafana_dashboard": "team", "team": "ml"}.items()
    plain = find(render({"monitoring": {"dashboard": {"enabled": True}}}), "ConfigMap")
    assert plain["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_dashboard_that_helm_would_never_update_is_refused() -> None:
    dashboard = {"enabled": True, "annotations": {"helm.sh/hook": "post-install"}}
    with pytest.raises(RenderError, match=r"monitoring\.dashboard\.annotations must not hold helm\.sh/hook"):
        render({"monitoring": {"dashboard": dashboard}})
