"""report.html: what stands on it, that no text becomes markup, and that it costs no run."""

import contextlib
import copy
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from job.attempt import Outcome
from job.commands import run
from job.commands.report import make_report, write_report
from job.config import Config
from job.errors import JobError, NotFoundError, UnavailableError
from job.registry.rules import GateRecord
from job.runs.read import CommittedRun, parse_run
from tests.conftest import QUICK, RunJob

_COMMIT: dict[str, Any] = {
    "run": "r",
    "attempt": "a",
    "files": [],
    "committed": "2026-11-24T00:00:00.000+00:00",
    "dataset": {"name": "digits", "digest": "d"},
    "weights_digest": "w",
    "result_digest": "e",
    "metrics": {"test_accuracy": 0.75, "test_loss": 0.5, "test_examples": 4},
    "config": {"train": {"epochs": 2}},
    "lineage": {"image": "image:1", "packages": {"numpy": "2.4"}},
}
_METRICS: dict[str, Any] = {
    "test": {
        "classes": [
            {"name": "zero", "num_examples": 2, "recall": 1.0, "precision": 0.6667},
            {"name": "one", "num_examples": 2, "recall": 0.5, "precision": 1.0},
        ],
        "confusion": [[2, 0], [1, 1]],
        "wrong": [{"position": 3, "label": 1, "predicted": 0, "probability": 0.9}],
    },
    "history": [
        {"loss": 2.0, "accuracy": 0.25, "test_loss": 1.5, "test_accuracy": 0.5},
        {"loss": 1.0, "accuracy": 0.5, "test_loss": 0.5, "test_accuracy": 0.75},
    ],
    "goodput": {"ratio": 0.5, "wall_seconds": 10.0, "seconds": {"train": 5.0, "lost": 0.0}},
}
_GATE: dict[str, Any] = {
    "run": "r",
    "decided": "2026-11-24T00:00:00.000+00:00",
    "who": "attempt a",
    "compared_with": {"version": 1, "run": "q"},
    "verdict": "refused",
    "rule": "max_accuracy_drop",
    "reason": "accuracy 0.7500 is 0.1000 below the best champion so far (0.8500)",
    "numbers": {"accuracy": 0.75, "p_value": 0.031},
    "model": "digits",
    "version": None,
}


def committed_of(commit: dict[str, Any]) -> CommittedRun:
    committed = parse_run(json.dumps(commit).encode(), "r")
    assert isinstance(committed, CommittedRun)
    return committed


def page_of(commit: dict[str, Any] = _COMMIT, metrics: dict[str, Any] = _METRICS, gate: Any = _GATE) -> bytes:
    return make_report(committed_of(commit), metrics, GateRecord.of(gate, key="gate.json") if gate else None)


class Page(HTMLParser):
    """The text of a page, and its elements."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_page_tells_scores_gate_epochs_classes_time_and_origin() -> None:
    page = Page(page_of(_COMMIT, _METRICS, _GATE))
    for wanted in (
        "Run r",
        "0.7500",
        "refused",
        _GATE["reason"],
        "0.031",
        "zero",
        "0.6667",
        "50.0% of 10.0 s",
        "image:1",
    ):
        assert wanted in page.text
    lines = [attributes["points"] for tag, attributes in page.tags if tag == "polyline"]
    assert lines == [
        "44.0,44.0 416.0,132.0",
        "44.0,88.0 416.0,176.0",
        "44.0,176.0 416.0,110.0",
        "44.0,110.0 416.0,44.0",
    ]


def test_run_that_was_not_asked_and_one_that_was_promoted() -> None:
    assert "Not asked." in Page(page_of(_COMMIT, _METRICS, None)).text
    promoted = _GATE | {"verdict": "promoted", "version": 3}
    assert "promoted to version 3 of digits" in Page(page_of(_COMMIT, _METRICS, promoted)).text


def test_no_text_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>\"'&amp;"
    commit, metrics, gate = (copy.deepcopy(each) for each in (_COMMIT, _METRICS, _GATE))
    commit["dataset"]["name"] = commit["config"]["train"]["x"] = commit["lineage"]["image"] = hostile
    metrics["test"]["classes"][0]["name"] = gate["reason"] = hostile
    page = Page(page_of(commit, metrics, gate))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(hostile) >= 5


def test_one_epoch_and_equal_values_can_be_drawn() -> None:
    metrics = _METRICS | {"history": [{"loss": 1.0, "accuracy": 1.0, "test_loss": 1.0, "test_accuracy": 1.0}]}
    page = Page(page_of(_COMMIT, metrics, None))
    assert all(attributes["points"] == "44.0,176.0" for tag, attributes in page.tags if tag == "polyline")


def test_epochs_that_were_not_evaluated_are_left_out_of_the_second_line() -> None:
    record = {"loss": 1.0, "accuracy": 1.0}
    history = [record, {**record, "test_loss": 2.0, "test_accuracy": 0.0}, record]
    page = Page(page_of(_COMMIT, _METRICS | {"history": history}, None))
    lines = [attributes["points"] for tag, attributes in page.tags if tag == "polyline"]
    assert lines[:2] == ["44.0,176.0 230.0,176.0 416.0,176.0", "230.0,44.0"]
    assert "test_loss 2.0000" in page.text


@pytest.mark.parametrize(
    ("keep", "stopped", "said"),
    [
        ("best", 3, "of epoch 1 of 3, the best; stopped early (train.epochs 9)"),
        ("last", 3, "of epoch 3 of 3; the best was epoch 1; stopped early (train.epochs 9)"),
        ("best", None, "of epoch 1 of 9, the best"),
    ],
)
def test_run_with_a_validation_split_shows_it_and_says_which_epoch_was_kept(
    keep: str, stopped: int | None, said: str
) -> None:
    scores = {"val_loss": 0.6, "val_accuracy": 0.65, "val_examples": 7}
    commit = _COMMIT | {
        "metrics": _COMMIT["metrics"] | scores,
        "config": {"train": {"epochs": 9, "keep": keep}},
        **{"best_epoch": 1, "stopped_epoch": stopped},
    }
    epoch = {"loss": 1.0, "accuracy": 1.0, "val_loss": 0.6, "val_accuracy": 0.65}
    page = Page(page_of(commit, _METRICS | {"history": [epoch]}, None))
    assert "val_loss 0.6000" in page.text and "val_accuracy 0.6500" in page.text and "test_loss" not in page.text
    assert said in page.text and "0.6500" in page.text


def metrics_of_many(num_classes: int, *, num_shown: int | None = None) -> dict[str, Any]:
    """What a run on so many classes leaves, where class 3 is worst."""
    shown = num_shown or num_classes
    names = [f"class number {number}" for number in range(num_classes)]
    confusion = [[50 if row == column else 1 for column in range(shown)] for row in range(shown)]
    confusion[3][3] = 0
    confusion[3][7] = 40
    test = {
        "classes": [
            {"name": name, "num_examples": 50, "recall": 0.1 if name.endswith(" 3") else 0.9, "precision": 0.9}
            for name in names
        ],
        "confusion": confusion,
        "wrong": [{"position": 5, "label": 3, "predicted": 7, "probability": 0.9}] * 200,
    }
    history = [{"loss": 2.0, "accuracy": 0.25, "test_loss": 1.5, "test_accuracy": 0.5}] * 20_000
    return _METRICS | {"test": test, "history": history}


@pytest.mark.parametrize("num_shown", [None, 100])
def test_page_of_a_thousand_classes_is_bounded_and_shows_the_worst(num_shown: int | None) -> None:
    metrics = metrics_of_many(1000, num_shown=num_shown)
    if num_shown:
        metrics["test"]["confusion_classes"] = [*range(num_shown)]
    page = page_of(_COMMIT, metrics, _GATE)
    assert len(page) < 200_000
    shown = Page(page)
    assert "The 30 of 1000 classes that are recalled least; metrics.json has all." in shown.text
    assert "The 30 of 1000 classes with the most mistakes." in shown.text
    assert shown.text.count("class number 3 ") >= 3
    cells = [attributes for tag, attributes in shown.tags if tag == "td" and "style" in attributes]
    assert len(cells) == 30 * 30
    assert all(len((attributes["points"] or "").split()) <= 501 for tag, attributes in shown.tags if tag == "polyline")


def test_page_of_twenty_classes_shows_them_all_in_their_order() -> None:
    shown = Page(page_of(_COMMIT, metrics_of_many(20), _GATE))
    assert "classes with the most mistakes" not in shown.text
    assert len([tag for tag, attributes in shown.tags if tag == "td" and "style" in attributes]) == 400
    assert shown.text.index("class number 2 ") < shown.text.index("class number 3 ")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("new/a b/x.html", None),
        ("file/x.html", NotFoundError),
        ("link", NotFoundError),
        ("link/x.html", NotFoundError),
        ("folder", NotFoundError),
        ("pipe", NotFoundError),
        ("/dev/full", UnavailableError),
    ],
)
def test_place_of_a_report_is_made_or_refused_as_every_place(
    name: str, error: type[JobError] | None, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(error, match=r"^--to: ") if error else contextlib.nullcontext():
        write_report(tmp_path / name, b"page")
    assert error or (tmp_path / name).read_bytes() == b"page"
    assert not (tmp_path / "nowhere").exists()


def test_report_that_cannot_be_made_costs_a_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    config = Config.model_validate({"store": {"uri": f"file:{tmp_path}"}})
    outcome = Outcome(committed=committed_of(_COMMIT), is_new=True, model_location="")
    assert run._make_report(config, outcome) == {}
    assert "report.failed" in [record.getMessage() for record in caplog.records]


@pytest.mark.tf
@pytest.mark.usefixtures("trained")
def test_run_leaves_a_report_beside_its_log_and_report_makes_it_again(run_job: RunJob, tmp_path: Path) -> None:
    [stored] = tmp_path.glob("out/runs/r/logs/*/report.html")
    done = run_job("report", "r", "--to=again.html")
    assert (done.code, done.stdout) == (0, "again.html\n")
    assert (tmp_path / "again.html").read_bytes() == stored.read_bytes()
    assert "promoted to version 1 of digits" in Page(stored.read_bytes()).text

    assert run_job("report", "r", "--to=new/folder/again.html").code == 0
    refused = run_job("report", "r", "--to=/dev/full")
    assert (refused.code, refused.stderr.count("\n")) == (69, 1)
    assert "--to: /dev/full cannot be written: No space left on device; choose another file" in refused.stderr
    assert run_job("report", "other").code == 66

    assert run_job("run", *QUICK, "--run.id=q", "--observe.report=false").code == 0
    assert not [*tmp_path.glob("out/runs/q/logs/*/report.html")]
