"""The series that Prometheus gets: names, numbers, and that nothing of it can fail a run."""

import contextlib
import http.client
import http.server
import itertools
import json
import logging
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from job import contract, logs
from job.contract import ExitCode
from job.observe import exposition
from job.observe.metrics import Champion, Metrics
from job.observe.phases import PAUSED, PHASES, Phases
from job.observe.progress import Display
from job.observe.termination import OUTCOMES, Status
from job.observe.view import View
from job.registry.rules import Verdict
from job.runs import goodput
from job.runs.goodput import LOST
from tests.conftest import QUICK, REPOSITORY, RunJob, job_command, job_environment
from tests.ports import free_ports

# The contract with dashboards and alerts: a series that is renamed breaks them.
_OWN = {
    "info", "phase", "seconds_since_progress", "warnings_total", "store_requests_total", "store_retries_total",
    "memory_limit_bytes", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds",
    "process_open_fds",
}  # fmt: skip
"""Of every worker; the others are the chief's."""
_COUNTERS = {
    "steps_total", "examples_total", "epochs_total", "attempts_total", "interruptions_total", "checkpoint_failures_total",
}  # fmt: skip
_RUNNING = _OWN | _COUNTERS | {
    "loss", "accuracy", "test_loss", "test_accuracy", "val_loss", "val_accuracy", "class_recall_ratio", "step_seconds_bucket",
    "step_seconds_sum", "step_seconds_count", "examples_per_second", "checkpoint_seconds", "checkpoint_last_timestamp_seconds",
    "checkpoint_step", "run_steps", "run_attempts", "run_interruptions", "run_start_timestamp_seconds", "goodput_ratio",
    "goodput_seconds", "progress_ratio", "eta_seconds", "learning_rate", "metric", "dataset_info",
}  # fmt: skip
_AT_EXIT = {
    "last_success_timestamp_seconds", "last_run_timestamp_seconds", "last_start_timestamp_seconds", "duration_seconds",
    "run_duration_seconds", "exit_code", "outcome", "promoted", "gate_verdict", "champion_accuracy", "champion_version",
    "champion_timestamp_seconds",
}  # fmt: skip
_OUTCOME = _AT_EXIT | {
    "test_accuracy",
    "dataset_info",
    "run_start_timestamp_seconds",
    "goodput_ratio",
    "goodput_seconds",
}
_ANY_END = {
    "last_run_timestamp_seconds", "last_start_timestamp_seconds", "exit_code", "outcome",
}  # fmt: skip
"""What is pushed however soon an attempt ends."""
_GOODPUT_SECONDS = dict.fromkeys(
    ("start_up", "wait_for_workers", "data", "compile", "train", "evaluate", "checkpoint", "publish", "paused", "lost"),
    1.0,
)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Series:
    return {
        (sample.name.removeprefix("mnist_train_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


def value(series: Series, name: str) -> float:
    [found] = [number for (of, _), number in series.items() if of == name]
    return found


@pytest.fixture
def metrics() -> Metrics:
    """With everything set that a run sets: the largest case."""
    made = Metrics(status=Status(run="ns.r"), phases=Phases(), memory_limit_bytes=2**30)
    made.describe(version="1", image="i", run="ns.r", dataset="mnist", precision="float32", replicas=2, workers=1)
    made.registered()
    made.set(run_start_timestamp_seconds=1000.0)
    made.restored({"steps": 5, "examples": 600, "epochs": 0, "attempts": 3, "interruptions": 2})
    made.count({"steps": 7, "examples": 800, "epochs": 1, "attempts": 3, "interruptions": 2})
    made.set(loss=0.5, accuracy=0.8, test_loss=0.6, val_loss=0.6, val_accuracy=0.7, examples_per_second=1e5)
    made.set(progress_ratio=0.1, eta_seconds=12, learning_rate=0.1)
    made.set_metrics({f"metric_{number}": 0.5 for number in range(20)})
    made.checkpoint_saved(7, 0.004)
    made.set_recalls({str(digit): digit / 10 for digit in range(10)})
    made.warnings.by_event.update({f"event.{number}": 1 for number in range(20)})
    made.status.goodput = lambda: {"ratio": 0.5, "seconds": _GOODPUT_SECONDS}
    made.set_goodput(made.status.goodput())
    made.dataset_digest = "0123456789abcdef"
    made.status.accuracy, made.status.commit = 0.88, contract.commit_key("ns.r")
    made.verdict, made.champion = "same", Champion(accuracy=0.87, version=4, when="1970-01-01T00:01:40.000+00:00")
    return made


def pushed(metrics: Metrics) -> Series:
    return parse(exposition.to_text(metrics.outcome).decode())


def scraped(metrics: Metrics) -> Series:
    return parse(exposition.to_text(metrics.running).decode())


def test_the_series_are_those_of_the_contract_at_most_120_of_a_target_and_40_of_a_group(metrics: Metrics) -> None:
    running = scraped(metrics)
    assert names(running) == _RUNNING
    assert len(running) <= 120
    metrics.status.code = ExitCode.OK
    assert names(pushed(metrics)) == _OUTCOME
    assert len(pushed(metrics)) <= 40
    everything = parse(exposition.to_text(metrics.everything).decode())
    assert names(everything) == _RUNNING | _AT_EXIT
    assert {name for name, labels in everything if "run" in dict(labels)} == {"info"}
    assert names(parse(exposition.to_text(metrics.start).decode())) == {"last_start_timestamp_seconds"}


def test_every_phase_of_goodput_is_in_the_largest_case() -> None:
    assert {goodput.category_of(phase) for phase in (*PHASES, PAUSED)} | {LOST} == _GOODPUT_SECONDS.keys()


def test_no_series_is_there_twice(metrics: Metrics) -> None:
    metrics.status.code = ExitCode.OK
    for families in (metrics.running, metrics.outcome, metrics.everything):
        lines = [
            line.rpartition(" ")[0] for line in exposition.to_text(families).decode().splitlines() if line[0] != "#"
        ]
        assert len(lines) == len(set(lines))


def test_another_worker_tells_about_itself_only(metrics: Metrics) -> None:
    metrics.is_chief = False
    assert names(scraped(metrics)) == _OWN


def test_counters_and_info_are_there_from_the_first_scrape() -> None:
    """`increase()` misses what a counter had when it appeared; a series whose labels change is two."""
    series = scraped(Metrics(status=Status(), phases=Phases()))
    assert names(series) >= _COUNTERS | {"info", "store_requests_total", "store_retries_total"}
    assert not any(number for (name, _), number in series.items() if name in _COUNTERS or name.startswith("store_"))
    assert len([name for name, _ in series if name == "store_requests_total"]) == 14


def test_values_are_what_was_set(metrics: Metrics) -> None:
    series = scraped(metrics)
    assert [value(series, f"{name}_total") for name in ("steps", "examples", "epochs", "attempts")] == [2, 200, 1, 1]
    assert [value(series, f"run_{name}") for name in ("steps", "attempts", "interruptions")] == [7, 3, 2]
    assert value(series, "interruptions_total") == 0, "those of the attempts before are theirs"
    assert value(series, "test_accuracy") == 0.88
    assert value(series, "checkpoint_step") == 7
    assert value(series, "memory_limit_bytes") == 2**30
    assert value(series, "process_resident_memory_bytes") > 1e6
    assert series["class_recall_ratio", (("digit", "3"),)] == 0.3
    assert series["dataset_info", (("dataset", "mnist"), ("digest", "0123456789ab"))] == 1
    assert len([name for name, _ in series if name == "metric"]) == 16, "more would be too many series"
    [info] = [dict(labels) for name, labels in series if name == "info"]
    assert (info["run"], info["replicas"]) == ("ns.r", "2")


def test_warnings_are_counted_by_event_and_failed_checkpoints_among_them(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(status=Status(), phases=Phases())
    logs.tell_too(metrics.warnings)
    try:
        for _ in range(2):
            logs.warn("checkpoint.failed", reason="x")
        logs.emit("run.start")
        logs.error("error")
        for number in range(10):
            logs.warn(f"event.{number}")
    finally:
        logging.getLogger(logs.LOGGER_NAME).removeHandler(metrics.warnings)
    series = scraped(metrics)
    told = {labels[0][1]: number for (name, labels), number in series.items() if name == "warnings_total"}
    assert told == {"checkpoint.failed": 2} | {f"event.{number}": 1 for number in range(7)} | {"other": 3}
    assert value(series, "checkpoint_failures_total") == 2


def test_a_restored_checkpoint_has_its_time_and_step(metrics: Metrics) -> None:
    metrics.checkpoint_restored(5, 1234.5678)
    series = scraped(metrics)
    assert (value(series, "checkpoint_step"), value(series, "checkpoint_last_timestamp_seconds")) == (5, 1234.568)


def _hot(series: Series, name: str) -> list[str]:
    return [labels[0][1] for (of, labels), number in series.items() if of == name and number == 1]


def test_an_end_says_outcome_verdict_champion_and_how_long_the_run_took(metrics: Metrics) -> None:
    metrics.status.outcome, metrics.status.code = "committed", ExitCode.OK
    series = pushed(metrics)
    assert [_hot(series, name) for name in ("outcome", "gate_verdict")] == [["committed"], ["same"]]
    assert {labels[0][1] for name, labels in series if name == "outcome"} == set(OUTCOMES)
    assert {labels[0][1] for name, labels in series if name == "gate_verdict"} == set(get_args(Verdict))
    assert (value(series, "promoted"), value(series, "champion_version")) == (0, 4)
    assert (value(series, "champion_timestamp_seconds"), value(series, "run_start_timestamp_seconds")) == (100, 1000)
    assert value(series, "run_duration_seconds") == len(_GOODPUT_SECONDS)
    assert series["goodput_seconds", (("category", "lost"),)] == 1
    assert 0 <= time.time() - value(series, "last_start_timestamp_seconds") < 600
    assert _hot(parse(exposition.to_text(metrics.everything).decode()), "phase") == ["end"]


def test_a_skipped_night_leaves_durations_accuracy_verdict_and_goodput_as_they_are() -> None:
    metrics = Metrics(
        status=Status(run="ns.tonight", commit=contract.commit_key("ns.champion"), accuracy=0.9), phases=Phases()
    )
    metrics.dataset_digest, metrics.champion = "0", Champion(accuracy=0.9, version=1, when="1970-01-01T00:00:00+00:00")
    metrics.status.outcome, metrics.status.code, metrics.status.seconds = "skipped", ExitCode.OK, 3.0
    of_champion = {"champion_accuracy", "champion_version", "champion_timestamp_seconds"}
    assert names(pushed(metrics)) == _ANY_END | of_champion | {"last_success_timestamp_seconds", "dataset_info"}
    assert "test_accuracy" not in names(scraped(metrics)), "that is the champion's"


def test_an_attempt_that_was_interrupted_in_training_pushes_no_accuracy_and_no_duration_of_the_run(
    metrics: Metrics,
) -> None:
    metrics.status.commit, metrics.status.outcome, metrics.status.code = None, "interrupted", ExitCode.INTERRUPTED
    metrics.verdict = None
    missing = {"test_accuracy", "run_duration_seconds", "gate_verdict", "promoted", "last_success_timestamp_seconds"}
    assert names(pushed(metrics)) == _OUTCOME - missing
    assert value(scraped(metrics), "test_accuracy") == 0.88, "while it trains it is of this run"


_HOSTILE = [
    'a"b\\c',
    "line\nbreak",
    "\x1b[31mred",
    "\u202egnp",
    "caf\udce9",
    "x" * 5000,
    "",
    "a}1 2\n# TYPE evil counter",
]


def test_hostile_names_are_labels_of_one_line(metrics: Metrics) -> None:
    metrics.set_recalls(dict.fromkeys(_HOSTILE, 0.5))
    metrics.set_metrics(dict.fromkeys(_HOSTILE, 0.5))
    metrics.describe(dataset=_HOSTILE[2], image=_HOSTILE[4])
    metrics.warnings.by_event[_HOSTILE[1]] += 1
    metrics.status.code = ExitCode.OK
    text = exposition.to_text(metrics.everything).decode()
    assert text.isascii() and "\x1b" not in text
    assert names(parse(text)) <= _RUNNING | _AT_EXIT
    labels = [label for (name, pairs) in parse(text) for _, label in pairs]
    assert max(map(len, labels)) <= 200
    assert sum(name == "class_recall_ratio" for name, _ in parse(text)) == len(_HOSTILE)


def test_names_that_become_one_label_are_one_series(metrics: Metrics) -> None:
    metrics.set_recalls({"a b": 0.5, "a  b": 0.6})
    assert [n for (name, _), n in scraped(metrics).items() if name == "class_recall_ratio"] == [0.5]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_left_out(number: float, metrics: Metrics) -> None:
    metrics.set(loss=number, val_loss=number, eta_seconds=number)
    metrics.set_metrics({"auc": number, "f1_macro": 0.5})
    metrics.set_recalls({"0": number, "1": 0.5})
    metrics.status.accuracy = number
    metrics.status.code = ExitCode.OK
    series = parse(exposition.to_text(metrics.everything).decode())
    assert not any(math.isnan(found) or math.isinf(found) for found in series.values())
    assert not names(series) & {"loss", "val_loss", "eta_seconds", "test_accuracy"}
    assert [dict(labels) for name, labels in series if name == "metric"] == [{"metric": "f1_macro"}]


def test_two_threads_that_set_gauges_undo_nothing_of_each_other(metrics: Metrics) -> None:
    before, lost = sys.getswitchinterval(), 0
    sys.setswitchinterval(1e-5)
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            metrics.set(loss=0.1)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for step in range(300):
            metrics.set(checkpoint_step=step)
            lost += value(scraped(metrics), "checkpoint_step") != step
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
    assert lost == 0


def test_a_decision_about_another_model_is_no_number_of_this_one(run_plain: RunJob, tmp_path: Path) -> None:
    verdicts = []
    for model in ("a", "b"):
        flags = ("--observe.metrics_port=0", "--data.source=digits", "--train.epochs=1", "--train.global_batch_size=64")
        done = run_plain("run", *flags, "--run.id=r", f"--promotion.model_name={model}")
        assert done.code == 0, done.stderr
        attempt = done.events[-1]["attempt"]
        kept = (tmp_path / f"out/runs/r/logs/{attempt}/metrics.prom").read_text()
        verdicts.append(re.findall(r'gate_verdict\{.*verdict="(\w+)"\} 1', kept))
    assert verdicts == [["refused"], []]


def test_one_phase_is_the_current_one(metrics: Metrics) -> None:
    metrics.phases.switch("train")
    series = parse(exposition.to_text(metrics.running).decode())
    phases = {labels[0][1]: number for (name, labels), number in series.items() if name == "phase"}
    assert phases == {name: float(name == "train") for name in (*PHASES, "end")}


def test_steps_are_counted_in_the_bucket_of_their_mean(metrics: Metrics) -> None:
    metrics.add_steps(10, seconds=0.03)
    metrics.add_steps(5, seconds=0.01)
    metrics.add_steps(1, seconds=60)
    series = parse(exposition.to_text(metrics.running).decode())
    buckets = {dict(labels)["le"]: number for (name, labels), number in series.items() if name == "step_seconds_bucket"}
    assert [buckets[bound] for bound in ("0.001", "0.002", "0.005", "2.0", "+Inf")] == [0, 5, 15, 15, 16]
    assert value(series, "step_seconds_count") == 16
    assert value(series, "step_seconds_sum") == pytest.approx(60.04)


def test_many_classes_have_no_series_each(metrics: Metrics) -> None:
    metrics.set_recalls({str(number): 0.5 for number in range(11)})
    assert "class_recall_ratio" not in names(parse(exposition.to_text(metrics.running).decode()))


def test_a_failure_leaves_the_last_success_as_it_is() -> None:
    metrics = Metrics(status=Status(run="ns.r", outcome="failed", code=ExitCode.CONFIG), phases=Phases())
    assert names(pushed(metrics)) == _ANY_END
    assert value(pushed(metrics), "exit_code") == 64


def _increase(samples: list[float]) -> float:
    """What Prometheus' `increase()` adds up over a window that holds these samples: after a fall a counter began at 0 again."""
    return sum(now - before if now >= before else now for before, now in itertools.pairwise(samples))


def _attempt(view: View, metrics: Metrics, *, start: int, stop: int, attempts: int) -> list[tuple[float, float]]:
    """`steps_total` and `run_steps` at each scrape of an attempt that makes these steps, from the first one on."""

    def scrape() -> tuple[float, float]:
        series = scraped(metrics)
        return value(series, "steps_total"), series.get(("run_steps", ()), 0.0)

    def counters(step: int) -> dict[str, int]:
        return {"steps": step, "examples": step * 10, "epochs": step // 50, "attempts": attempts, "interruptions": 0}

    seen = [scrape()]  # before anything is restored
    view.training_starts(step=start, total_steps=400, epochs=8, counters=counters(start))
    for step in range(start + 10, stop + 1, 10):
        view.count(counters(step))
        seen.append(scrape())
    return seen


def _two_attempts() -> list[tuple[float, float]]:
    """100 steps, of which 60 are in a checkpoint when the attempt is killed; the next one makes 60 to 200 on the same address."""
    seen = []
    for start, stop, attempts in ((0, 100, 1), (60, 200, 2)):
        status = Status(run="ns.r")
        metrics = Metrics(status=status, phases=Phases())
        view = View(display=Display("json", is_silent=True), metrics=metrics, status=status)
        seen += _attempt(view, metrics, start=start, stop=stop, attempts=attempts)
    return seen


def test_steps_are_counted_as_often_as_they_were_made_whatever_was_killed_on_the_same_address() -> None:
    own, of_run = zip(*_two_attempts(), strict=True)
    assert _increase(list(own)) == 100 + 140
    going_on = [
        number for number in of_run if number
    ]  # a counter that goes on from the restored step falls, and counts all again
    assert _increase([0.0, *going_on]) == 100 + 70 + 130
    assert of_run[-1] == 200


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("no promtool here")
    return found


def test_prometheus_itself_counts_so(promtool: str, tmp_path: Path) -> None:
    own = [number for number, _ in _two_attempts()]
    seconds = 60 * (len(own) - 1)
    test = {
        "interval": "1m",
        "input_series": [{"series": "mnist_train_steps_total", "values": " ".join(f"{number:g}" for number in own)}],
        "promql_expr_test": [
            {
                "expr": f"round(increase(mnist_train_steps_total[{seconds + 1}s]))",
                "eval_time": f"{seconds}s",
                "exp_samples": [{"labels": "{}", "value": 240}],
            }
        ],
    }
    (tmp_path / "test.json").write_text(json.dumps({"rule_files": [], "tests": [test]}))
    done = subprocess.run(
        [promtool, "test", "rules", "test.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_finds_nothing_to_say_about_the_series(promtool: str, metrics: Metrics) -> None:
    metrics.status.code = ExitCode.OK
    metrics.set_recalls({"a\nb": 0.5})
    for families in (metrics.running, metrics.outcome, metrics.everything, metrics.start):
        text = exposition.to_text(families)
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_and_health_are_served(metrics: Metrics) -> None:
    port = exposition.serve(metrics.running, port=0)
    assert port
    assert _get(port, "/healthz") == (200, "ok\n")
    status, text = _get(port, "/metrics")
    assert (status, names(parse(text))) == (200, _RUNNING)
    assert _get(port, "/")[0] == 404


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_metrics_are_served_over_ipv6_too(metrics: Metrics) -> None:
    port = exposition.serve(metrics.running, port=0)
    with urllib.request.urlopen(f"http://[::1]:{port}/healthz", timeout=10) as answer:
        assert answer.status == 200


class _Gateway(http.server.BaseHTTPRequestHandler):
    """Takes down what is pushed; the real one is in the tests of the cluster."""

    received: list[tuple[str, str, str]]
    code = 200
    answer = ""
    headers_to_send: Mapping[str, str] = MappingProxyType({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.received.append((self.command, self.path, body))
        self.send_response(self.code)
        for name, value in self.headers_to_send.items():
            self.send_header(name, value.replace("PATH", self.path))
        self.end_headers()
        self.wfile.write(self.answer.encode())

    do_GET = do_PUT = do_POST  # noqa: N815 - the names of the base class

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        pass


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[_Gateway]]]:
    yield from serve_gateway()


def serve_gateway() -> Iterator[tuple[str, type[_Gateway]]]:
    """A gateway and what it takes down, for as long as a fixture lives."""
    handler = type("Handler", (_Gateway,), {"received": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_the_outcome_is_added_to_its_group(
    metrics: Metrics, gateway: tuple[str, type[_Gateway]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="job")
    url, handler = gateway
    metrics.status.code = ExitCode.OK
    exposition.push(url, metrics.outcome, group={"model": "mnist", "namespace": "", "release": "nightly"})
    [(method, path, body)] = handler.received
    assert method == "POST"  # PUT would take away what is not in it
    assert path == "/metrics/job/mnist-train/model/mnist/release/nightly"
    assert names(parse(body)) == _OUTCOME
    told = [(record.message, record.fields) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [("metrics.pushed", {"url": url, "at": "end"})]


Gateway = tuple[str, type[_Gateway]]


@pytest.fixture
def front() -> Iterator[Gateway]:
    """What stands before a gateway."""
    yield from serve_gateway()


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_push_that_is_redirected_arrives_as_it_was(
    code: int, metrics: Metrics, gateway: Gateway, front: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="job")
    front[1].code, front[1].headers_to_send = code, {"Location": f"{gateway[0]}PATH"}
    metrics.status.code = ExitCode.OK
    exposition.push(front[0], metrics.outcome, group={"model": "mnist"})
    [sent], [arrived] = front[1].received, gateway[1].received
    assert (arrived, arrived[0], names(parse(arrived[2]))) == (sent, "POST", _OUTCOME)
    assert [record.message for record in caplog.records] == ["metrics.pushed"]


_HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.mark.parametrize(
    ("code", "headers", "answer", "reason"),
    [
        (200, _HTML, "<html>login</html>", "answered with a page"),
        (200, {}, "<!doctype html>", "answered with a page"),
        (200, _HTML, "", "answered with a page"),
        (303, {"Location": "http://127.0.0.1:9/"}, "", "HTTP Error 303"),
        (301, {"Location": "http://127.0.0.1:9/"}, "", "Connection refused"),
        (301, {"Location": "gopher://127.0.0.1/"}, "", "HTTP Error 301"),
        (301, {"Location": "PATH"}, "", "would lead to an infinite loop"),
        (302, {}, "", "HTTP Error 302"),
        (
            400,
            {},
            "text format parsing error\nin line 1",
            "HTTP Error 400: Bad Request: text format parsing error in line 1",
        ),
        (404, _HTML, "<h1>no</h1>", "HTTP Error 404"),
        (405, {}, "", "HTTP Error 405"),
        (413, {}, "", "HTTP Error 413"),
        (503, {}, "", "HTTP Error 503"),
    ],
)
def test_a_push_that_was_not_accepted_is_a_warning(
    code: int,
    headers: dict[str, str],
    answer: str,
    reason: str,
    metrics: Metrics,
    gateway: Gateway,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, handler = gateway
    handler.code, handler.headers_to_send, handler.answer = code, headers, answer
    metrics.status.code = ExitCode.OK
    exposition.push(url, metrics.outcome, group={})
    [warning] = caplog.records
    assert (warning.message, warning.fields["url"]) == ("metrics.not_pushed", url)  # type: ignore[attr-defined]
    assert reason in warning.fields["reason"]  # type: ignore[attr-defined]
    assert "correct observe.pushgateway_url or start the gateway" in warning.fields["reason"]  # type: ignore[attr-defined]


def test_a_gateway_that_refuses_is_a_warning(
    metrics: Metrics, gateway: tuple[str, type[_Gateway]], caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = gateway
    handler.code = 500
    metrics.status.code = ExitCode.OK
    exposition.push(url, metrics.outcome, group={})
    assert [record.message for record in caplog.records] == ["metrics.not_pushed"]
    assert "HTTP Error 500" in caplog.records[0].fields["reason"]  # type: ignore[attr-defined]


@pytest.mark.security("S9")
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2:9/", "it redirects to another host"),
        ("http://user:secret@127.0.0.1:9/", "it redirects to another host"),
        ("ftp://127.0.0.1:9/", "it redirects to another host, to another kind of address"),
        ("file:///etc/hostname", "is not allowed"),
        ("//localhost:9/", "it redirects to another host"),
    ],
)
def test_a_gateway_does_not_choose_whom_this_process_talks_to(
    location: str, reason: str, metrics: Metrics, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = gateway
    handler.code, handler.headers_to_send = 307, {"Location": location}
    metrics.status.code = ExitCode.OK
    exposition.push(url, metrics.outcome, group={})
    [warning] = caplog.records
    assert warning.message == "metrics.not_pushed"
    assert reason in warning.fields["reason"]  # type: ignore[attr-defined]
    assert "secret" not in warning.fields["reason"]  # type: ignore[attr-defined]
    assert len(handler.received) == 1


class _Endless(_Gateway):
    """Answers without end, and counts what was taken of it."""

    sent: list[int]

    def do_POST(self) -> None:
        self.send_response(self.code)
        self.send_header("Location", f"http://127.0.0.1:9{self.path}")
        self.end_headers()
        with contextlib.suppress(OSError):
            while sum(self.sent) < 500_000_000:
                self.sent.append(self.wfile.write(b"\x1b[31m<" + bytes(1_000_000)))


@pytest.mark.security("S9")
@pytest.mark.parametrize("code", [200, 301, 302, 303, 400])
def test_an_answer_without_end_is_not_read(code: int, metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    handler: type[_Endless] = type("Handler", (_Endless,), {"sent": [], "code": code})
    metrics.status.code = ExitCode.OK
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        exposition.push(f"http://127.0.0.1:{server.server_port}", metrics.outcome, group={})
        server.shutdown()
    assert [record.message for record in caplog.records] == ["metrics.not_pushed"] * (code != 200)
    assert sum(handler.sent) < 20_000_000


def test_a_gateway_that_is_silent_costs_five_seconds(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    metrics.status.code = ExitCode.OK
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        exposition.push(f"http://127.0.0.1:{silent.getsockname()[1]}", metrics.outcome, group={})
        assert time.monotonic() - started < exposition.PUSH_SECONDS + 10
    assert [record.message for record in caplog.records] == ["metrics.not_pushed"]


@pytest.mark.tf
def test_a_run_whose_port_is_taken_and_whose_gateway_is_away_succeeds_and_says_so(run_job: RunJob) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_job(
            "run",
            *QUICK,
            "--run.id=r",
            f"--observe.metrics_port={port}",
            "--observe.pushgateway_url=http://127.0.0.1:9",
        )
    assert done.code == 0, done.stderr
    assert "Address already in use; choose another observe.metrics_port" in done.event("metrics.not_served")["reason"]
    assert "Connection refused" in done.event("metrics.not_pushed")["reason"]
    assert done.events[-1]["event"] == "run.end"


@pytest.mark.tf
def test_a_run_can_be_scraped_and_leaves_its_metrics_in_the_store(
    tmp_path: Path, gateway: tuple[str, type[_Gateway]]
) -> None:
    [port] = free_ports(1)
    arguments = [
        "run", *QUICK, "--train.epochs=60", "--train.metrics=auc", "--run.id=r", f"--observe.metrics_port={port}",
        f"--observe.pushgateway_url={gateway[0]}", "--checkpoint.interval_seconds=0.2",
    ]  # fmt: skip
    environment = job_environment({"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)})
    seen: list[float] = []
    infos: set[tuple[tuple[str, str], ...]] = set()
    with subprocess.Popen(
        job_command(arguments),
        cwd=tmp_path,
        env=environment | {"RELEASE": "nightly"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while process.poll() is None:
                try:
                    text = _get(port, "/metrics")[1]
                    seen += [number for (name, _), number in parse(text).items() if name == "steps_total"]
                    infos |= {labels for name, labels in parse(text) if name == "info"}
                except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError):
                    time.sleep(0.02)
            assert process.stdout
            output = process.stdout.read()
        finally:
            process.kill()
    assert process.returncode == 0
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]
    [kept] = tmp_path.glob("out/runs/r/logs/*/metrics.prom")
    series = parse(kept.read_text())
    may_lack = {"val_loss", "val_accuracy", "warnings_total", "memory_limit_bytes"}
    assert names(series) | may_lack == _RUNNING | _AT_EXIT
    assert value(series, "steps_total") == value(series, "run_steps") == events[-1]["step"] == 2700
    assert seen[0] == 0, "increase() misses what a counter had when it appeared"
    assert len(infos) == 1, "a series whose labels change is two"
    assert dict(infos.pop()).items() >= {"dataset": "digits", "replicas": "1", "origin": "manual", "run": "r"}.items()
    assert value(series, "exit_code") == 0
    assert value(series, "promoted") == 1
    assert value(series, "test_accuracy") == events[-1]["accuracy"]
    assert value(series, "attempts_total") == 1
    requests = {dict(labels)["verb"]: n for (name, labels), n in series.items() if name == "store_requests_total"}
    assert {"create", "get", "list"} <= requests.keys()
    (_, path, at_start), (_, path_at_end, at_end) = gateway[1].received
    assert path == path_at_end == "/metrics/job/mnist-train/model/digits/origin/manual/release/nightly"
    assert names(parse(at_start)) == {"last_start_timestamp_seconds"}
    assert names(parse(at_end)) == _OUTCOME
    assert _hot(parse(at_end), "gate_verdict") == ["promoted"]


def test_every_series_is_documented() -> None:
    text = (REPOSITORY / "docs" / "reference.md").read_text()
    documented = set(re.findall(r"`(?:mnist_train_)?([a-z_]+)(?:\{[a-z,]+\})?`", text[text.index("## Metrics") :]))
    wanted = {re.sub(r"^step_seconds_.*", "step_seconds", name) for name in _RUNNING | _AT_EXIT}
    assert wanted <= documented
