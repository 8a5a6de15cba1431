"""What a real Prometheus and a real Pushgateway know about a run: the manifests are those of scripts/kind."""

import json
import urllib.parse

import pytest
import yaml

from tests.charts.dashboard import Query, read_queries
from tests.conftest import REPOSITORY
from tests.e2e.cluster import Namespace, Object, wait_until
from tests.e2e.conftest import keys_in

_MANIFESTS = REPOSITORY / "scripts" / "kind-monitoring.yaml"
_IMAGES = {"PROMETHEUS_IMAGE": "prom/prometheus:v2.42.0", "PUSHGATEWAY_IMAGE": "prom/pushgateway:v1.5.1"}

_MAY_BE_EMPTY = ("{{event}}", " test_loss", " test_accuracy", " limit")
"""Ends of legends: warnings that did not happen, scores that are made at the very end, a limit that the node does not tell."""


def _start_monitoring(ns: Namespace) -> None:
    text = _MANIFESTS.read_text()
    for name, image in _IMAGES.items():
        text = text.replace(name, image)
    ns.apply(*yaml.safe_load_all(text))
    ns.kubectl("rollout", "status", "deployment", "--timeout=120s")


def _query(ns: Namespace, query: str) -> list[tuple[dict[str, str], float]]:
    """Labels and values that Prometheus answers with now."""
    path = f"/api/v1/namespaces/{ns.name}/services/prometheus:9090/proxy/api/v1/query?query={urllib.parse.quote(query)}"
    answer: Object = json.loads(ns.kubectl("get", "--raw", path))
    return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]


def test_a_run_is_scraped_while_it_trains_and_its_outcome_stays_when_its_pod_is_gone(ns: Namespace, s3: Object) -> None:
    _start_monitoring(ns)
    pushed = {"observe": {"pushgateway_url": f"http://pushgateway.{ns.name}.svc:9091"}}
    job = ns.install(
        "train", keys_in(ns), {"store": s3}, pushed, {"train": {"epochs": 250}, "checkpoint": {"interval_seconds": 2}}
    )
    [(labels, steps)] = wait_until(
        lambda: _query(ns, 'mnist_train_steps_total{job="runs"} > 0'), "scraped steps", seconds=120
    )
    assert steps % 1 == 0
    assert "run" not in labels
    [(info, _)] = _query(ns, "mnist_train_info")
    run = ns.job(job)["metadata"]["annotations"]["mnist-train/run"]
    assert (info["run"], info["dataset"], info["replicas"], info["origin"]) == (run, "digits", "1", "schedule")
    wait_until(lambda: _query(ns, 'mnist_train_phase{phase="train"} == 1'), "scrape in a step", seconds=30)
    assert len(_query(ns, '{__name__=~"mnist_train_.+",job="runs"}')) <= 120

    assert ns.wait_for_end(job) == "Complete"
    [end] = ns.ended(job)
    ns.kubectl("delete", "job", job, "--wait")
    [(outcome, accuracy)] = wait_until(
        lambda: _query(ns, f'mnist_train_test_accuracy{{job="mnist-train",namespace="{ns.name}"}}'), "push", seconds=30
    )
    assert (outcome["release"], outcome["model"], outcome["origin"]) == ("train", "digits", "schedule")
    assert accuracy == end.message["accuracy"]
    [(_, code)] = _query(ns, f'mnist_train_exit_code{{namespace="{ns.name}"}}')
    [(_, age)] = _query(ns, f'time() - mnist_train_last_success_timestamp_seconds{{namespace="{ns.name}"}}')
    assert code == 0
    assert 0 <= age < 120


@pytest.mark.slow
def test_prometheus_answers_the_dashboard_during_a_run_and_after_it(ns: Namespace, s3: Object) -> None:
    _start_monitoring(ns)
    job = ns.install(
        "train",
        keys_in(ns),
        {"store": s3, "data": {"validation_fraction": 0.2}},
        {"observe": {"pushgateway_url": f"http://pushgateway.{ns.name}.svc:9091"}},
        {"train": {"epochs": 250}, "checkpoint": {"interval_seconds": 2}},
    )
    queries = [query for query in read_queries() if not query.legend.endswith(_MAY_BE_EMPTY)]
    during = [query for query in queries if query.is_live]
    wait_until(lambda: _query(ns, "mnist_train_steps_total > 0"), "scraped steps", seconds=120)
    _wait_for_answers(ns, during, "during the run")
    assert ns.wait_for_end(job) == "Complete"
    ns.kubectl("delete", "job", job, "--wait")
    _wait_for_answers(ns, [query for query in queries if not query.is_live], "after the run")


def _wait_for_answers(ns: Namespace, queries: list[Query], when: str) -> None:
    """Every query has an answer by now or soon; each is printed, for whoever wants to see them (`pytest -rP`)."""
    left = list(queries)
    assert left

    def ask() -> bool:
        for query in list(left):
            if found := _query(ns, query.expression):
                labels, value = found[0]
                print(f"{when}: {query.panel} | {query.legend} | {len(found)} series, {value:g} {labels}")
                left.remove(query)
        return not left

    try:
        wait_until(ask, f"answers {when}", seconds=90)
    except AssertionError:
        pytest.fail(f"no answer {when} to {[(query.panel, query.legend, query.expression) for query in left]}")
