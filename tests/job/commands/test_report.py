"""report.html: what stands on it, that no text becomes markup, and that it costs no run."""

import base64
import contextlib
import copy
import json
import math
import os
import re
import tarfile
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from job.attempt import Outcome
from job.commands import run
from job.commands.report import make_report, report_on, write_report
from job.commands.report.charts import Line, chart, linear_ticks
from job.commands.report.elements import say_number, say_share, say_time, to_page
from job.commands.report.facts import Facts, Rival, gather
from job.commands.report.results import to_png
from job.config import Config, StoreSection
from job.digests import canonical_json
from job.errors import JobError, NotFoundError, UnavailableError
from job.registry import champion
from job.registry.gate import read_gate
from job.registry.rules import GateRecord
from job.runs import read, write
from job.runs.read import CommittedRun, parse_run
from job.store.open import open_store
from job.store.store import Store
from job.texts import say_duration
from tests.conftest import QUICK, REPOSITORY, RunJob
from tests.job.runs.committed_runs import content_of, files_of

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


def gate_of(gate: Any = _GATE) -> GateRecord | None:
    return GateRecord.of(gate, key="gate.json") if gate else None


def page_of(
    commit: dict[str, Any] = _COMMIT, metrics: dict[str, Any] = _METRICS, gate: Any = _GATE, **more: Any
) -> bytes:
    return make_report(Facts(committed=committed_of(commit), metrics=metrics, gate=gate_of(gate), **more))


class Page(HTMLParser):
    """The text of a page, and its elements. A page that is not well-formed is refused."""

    _VOID = ("meta", "img", "br")

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == [], "elements that have no end"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice"
        assert all(value is not None for _, value in attrs), f"{tag} has an attribute without a value"
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag not in self._VOID, f"{tag} must have no end"
        assert self._open.pop() == tag, f"{tag} ends where another element is open"

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def lines(self) -> list[str]:
        return [str(attributes["points"]) for tag, attributes in self.tags if tag == "polyline"]


def test_page_begins_with_the_verdict_and_the_headline() -> None:
    commit = _COMMIT | {"counters": {"attempts": 2, "interruptions": 1}}
    page = Page(page_of(commit))
    assert f"Refused as champion of digits : {_GATE['reason']}." in page.text
    for wanted in (
        "Run r: refused, 75.00 %",
        "75.00 % test accuracy: 3 of 4 are right",
        "0.5000 test loss",
        "10.0 s of work, 50.00 % of it in training steps",
        "2 attempts 1 interruption",
        "2 epochs on digits",
        "2026-11-24 00:00 UTC committed",
    ):
        assert wanted in page.text
    assert page.text.index("Refused") < page.text.index("What the gate measured") < page.text.index("Made of")


def test_run_that_was_not_asked_and_one_that_was_promoted() -> None:
    assert "The gate was not asked" in Page(page_of(gate=None)).text
    promoted = _GATE | {"verdict": "promoted", "version": 3}
    assert "Promoted to version 3 of digits" in Page(page_of(gate=promoted)).text
    same = _GATE | {"verdict": "same"}
    assert "Same as the champion of digits" in Page(page_of(gate=same)).text


def test_gates_numbers_stand_beside_their_limits_in_words() -> None:
    numbers = {
        **{"accuracy": 0.75, "examples": 4, "lowest_recall": 0.5, "lowest_recall_class": 1, "champion_accuracy": 0.85},
        **{"only_champion_right": 2, "only_candidate_right": 1, "p_value": 0.031, "gain_p_value": 0.99},
        **{"anchor_accuracy": 0.9, "anchor_p_value": 1e-90, "anchor_gain_p_value": 1.0, "from_a_newer_version": 7},
    }
    limits = {"min_accuracy": 0.7, "max_accuracy_drop": 0.002, "min_class_recall": 0.4, "significance": 0.05}
    commit = _COMMIT | {"config": {"promotion": limits}}
    text = re.sub(r"\s+", " ", Page(page_of(commit, gate=_GATE | {"numbers": numbers})).text)
    for wanted in (
        "accuracy 75.00 % champion: 85.00 % -10.00 points at least 70.00 % (promotion.min_accuracy)",
        "accuracy 75.00 % yardstick: 90.00 % -15.00 points at most 0.20 % below it, or more by chance",
        "recall of its worst class, one 50.00 % at least 40.00 % (promotion.min_class_recall)",
        "4 test examples: one of them is 25 points of accuracy",
        "in 3.10 % of all comparisons (p_value). The gate takes it for chance from 5.00 % on",
        "chance alone would lose so much in less than 0.01 % (anchor_p_value)",
        "1 example won (only this run is right), 2 lost (only the champion is right)",
        "from_a_newer_version 7",
    ):
        assert wanted in text


@pytest.mark.parametrize("value", [None, "many", [1], True, {"a": 1}])
def test_gates_numbers_of_somebody_else_are_shown_as_they_are(value: Any) -> None:
    """The stored record lets anything through."""
    numbers = dict.fromkeys(("accuracy", "champion_accuracy", "p_value", "examples", "lowest_recall_class", "x"), value)
    text = Page(page_of(gate=_GATE | {"numbers": numbers | {"lowest_recall": value}})).text
    assert str(value) in text


def test_commands_reach_the_store_and_a_shell_takes_each_as_one_word() -> None:
    settings = StoreSection(uri="file:/tmp/a b'c", endpoint="http://127.0.0.1:9000", timeout_seconds=3)
    text = Page(page_of(gate=_GATE | {"verdict": "promoted", "version": 1}, store=settings)).text
    store = """'--store.uri=file:/tmp/a b'"'"'c' --store.endpoint=http://127.0.0.1:9000"""
    for command in ("verify --run r", "reproduce r", "show r", "fetch --to models --promotion.model_name=digits"):
        assert f"mnist-job {command} {store} " in text
    assert "fetch" not in Page(page_of()).text


def test_changed_settings_are_marked() -> None:
    config = Config().model_dump(mode="json")
    config["train"] |= {"epochs": 3, "learning_rate": 0.5, "from_a_newer_version": [1]}
    config["run"] |= {"id": "r"}
    theirs = copy.deepcopy(config)
    theirs["train"]["learning_rate"] = 0.01
    text = re.sub(r"\s+", " ", Page(page_of(_COMMIT | {"config": config})).text)
    assert "setting this run default train.epochs 3 20 train.learning_rate 0.5 0.01" in text
    assert "train.from_a_newer_version [1] unknown to this version" in text and "run.id 3" not in text
    rival = facts_rival(committed_of(_COMMIT | {"config": theirs}))
    page = page_of(_COMMIT | {"config": config}, rival=rival)
    assert re.findall(r"<mark>([^<]*)</mark>", page.decode()) == ["0.5"]
    plain = Config().model_dump(mode="json")
    assert "None: all that decide something" in Page(page_of(_COMMIT | {"config": plain})).text


def facts_rival(committed: CommittedRun) -> Rival:
    return Rival(version=1, run="q", committed=committed)


def test_digits_are_said_not_to_be_mnist() -> None:
    assert "not MNIST" in Page(page_of()).text
    mnist = _COMMIT | {"dataset": {"name": "mnist", "digest": "d"}}
    assert "not MNIST" not in Page(page_of(mnist)).text


def test_time_is_a_bar_and_says_what_its_parts_are() -> None:
    goodput = {
        "ratio": 0.5,
        "wall_seconds": 10.0,
        "seconds": {"train": 5.0, "lost": 0.0, "new": 5.0},
        "down_seconds": 90.0,
    }
    chain = [{"attempt": "a", "from_step": 0}, {"attempt": "b", "from_step": 70}]
    page = Page(page_of(_COMMIT | {"chain": chain}, _METRICS | {"goodput": goodput}))
    bars = [str(attributes["style"]) for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert [bar.partition(";")[0] for bar in bars] == ["flex: 5 0 0", "flex: 5 0 0"]
    for wanted in ("training steps that count", "no attempt ran for 1 min 30 s", "attempt b: from step 70 on"):
        assert wanted in page.text


@pytest.mark.security("S11")
def test_no_text_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>\"'&amp;</style><img src=x onerror=y>"
    commit, metrics, gate = (copy.deepcopy(each) for each in (_COMMIT, _METRICS, _GATE))
    commit["dataset"]["name"] = commit["config"]["train"]["x"] = commit["lineage"]["image"] = hostile
    commit["config"][hostile] = {hostile: hostile}
    metrics["test"]["classes"][0]["name"] = gate["reason"] = gate["model"] = gate["rule"] = hostile
    gate["numbers"] = {hostile: hostile, "metric": hostile, "lowest_recall": 1.0, "lowest_recall_class": 0}
    metrics["goodput"]["seconds"][hostile] = 1.0
    picture = {3: np.zeros((2, 2), np.uint8)}
    for pictures in ({}, picture):
        page = page_of(commit, metrics, gate | {"verdict": "promoted", "version": 1}, pictures=pictures)
        shown = Page(page)
        assert "script" not in {tag for tag, _ in shown.tags} and shown.count("style") == 1
        assert all(not name.startswith("on") for _, attributes in shown.tags for name in attributes)
        assert all(
            str(at.get("src", "data:")).startswith("data:image/png;base64,") for tag, at in shown.tags if tag == "img"
        )
        assert shown.text.count("<script>alert(1)</script>") >= 8


@pytest.mark.security("S11")
def test_control_characters_are_written_out() -> None:
    metrics = copy.deepcopy(_METRICS)
    metrics["test"]["classes"][0]["name"] = "a\x00\x1b[31m\u202e\ud800b"
    page = page_of(metrics=metrics)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page.decode())
    assert r"a\u0000\u001b[31m\u202e\ud800b" in Page(page).text


def test_nothing_comes_from_elsewhere_and_a_phone_can_show_it() -> None:
    page = page_of(pictures={3: np.zeros((2, 2), np.uint8)})
    shown = Page(page)
    assert {"script", "link", "iframe", "a"}.isdisjoint(tag for tag, _ in shown.tags)
    assert not re.search(r"https?:|url\(|@import", page.decode())
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in shown.tags
    for wanted in ("@media (prefers-color-scheme: dark)", "@media print", "overflow-x: auto"):
        assert wanted in page.decode()
    assert page.count(b"<table") == page.count(b'<div class="scroll"><table')


def test_one_epoch_is_dots_and_equal_values_can_be_drawn() -> None:
    metrics = _METRICS | {"history": [{"loss": 1.0, "accuracy": 1.0, "test_loss": 1.0, "test_accuracy": 1.0}]}
    page = Page(page_of(metrics=metrics))
    assert page.lines() == [] and page.count("circle") == 4
    assert "1 epoch on digits" in re.sub(r"\s+", " ", page.text)


def test_lines_start_and_end_where_their_epochs_are() -> None:
    lines = Page(page_of()).lines()
    assert [re.findall(r"([\d.]+),", line) for line in lines] == [["68.0", "460.0"]] * 4
    heights = [[float(y) for y in re.findall(r",([\d.]+)", line)] for line in lines]
    assert all(loss[0] < loss[1] for loss in heights[:2]) and all(accuracy[0] > accuracy[1] for accuracy in heights[2:])


def test_epochs_that_were_not_evaluated_are_left_out_of_the_second_line() -> None:
    record = {"loss": 1.0, "accuracy": 1.0}
    history = [record, {**record, "test_loss": 2.0, "test_accuracy": 0.0}, record]
    page = Page(page_of(metrics=_METRICS | {"history": history}))
    assert [len(line.split()) for line in page.lines()] == [3, 3] and page.count("circle") == 8
    assert "test 2" in page.text


def test_three_hundred_epochs_have_a_logarithmic_loss_round_ticks_and_few_rows() -> None:
    history = [{"loss": 2.0 * 0.97**n, "accuracy": 1 - 0.9**n / 2, "learning_rate": 0.1 / (n + 1)} for n in range(300)]
    page = Page(page_of(metrics=_METRICS | {"history": history}))
    text = re.sub(r"\s+", " ", page.text)
    assert "loss (logarithmic axis) 0.001 0.01 0.1 1 1 50 100 150 200 250 300 epoch" in text
    assert "accuracy 50 % 60 % 70 % 80 % 90 % 100 % 1 50" in text
    assert "learning rate (logarithmic axis)" in text and "11 of 300 epochs; metrics.json has all." in text
    assert page.count("circle") == 0 and page.count("polyline") == 3


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf], [1e308, -1e308]])
def test_a_curve_without_a_finite_value_is_said_to_have_none(values: list[float]) -> None:
    history = [{"loss": value, "accuracy": 0.5} for value in values]
    text = Page(page_of(metrics=_METRICS | {"history": history})).text
    assert ("No epoch recorded a finite loss." if values else "No epoch was recorded.") in text
    assert not re.search(r"\b(nan|inf)\b", text)


@pytest.mark.parametrize(
    "values",
    [[1.0, math.nan, 2.0], [0.0, 5e-324], [1e-300, 1.0], [-5.0, 3.0], [1e99, -1e99], [0.1 + 0.2, 0.3], [7.0] * 3],
)
def test_any_finite_values_stay_inside_the_chart(values: list[float]) -> None:
    line = Line(name="x", kind="first", points=[*enumerate(values, start=1)])
    page = Page(to_page("t", chart("x", [line], num_epochs=len(values), say=str)))
    places = [(float(at["cx"] or ""), float(at["cy"] or "")) for tag, at in page.tags if tag == "circle"]
    assert len(places) == sum(map(math.isfinite, values))
    assert all(62 <= x <= 466 and 29.9 <= y <= 204.1 for x, y in places)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.913, 0.987, [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]),
        (2, 2, [1.8, 1.9, 2, 2.1, 2.2]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (say_duration(0.04), "0.0 s"),
        (say_duration(59.94), "59.9 s"),
        (say_duration(59.96), "1 min 0 s"),
        (say_duration(125), "2 min 5 s"),
        (say_duration(3599.9), "1 h 0 min"),
        (say_duration(5399.5), "1 h 30 min"),
        (say_duration(86000), "23 h 53 min"),
        (say_duration(86399), "1 d 0 h"),
        (say_duration(180000), "2 d 2 h"),
        (say_duration(None), "-"),
        (say_share(0.97504), "97.50 %"),
        (say_share(None), "None"),
        (say_number(0.00001234), "1.23e-05"),
        (say_number(12), "12"),
        (say_number(math.nan), "nan"),
        (say_time("2026-11-24T01:00:00.000+01:00"), "2026-11-24 00:00 UTC"),
        (say_time("yesterday"), "yesterday"),
        (say_time(""), "unknown"),
    ],
)
def test_numbers_are_written_for_people(said: str, expected: str) -> None:
    assert said == expected


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
    text = Page(page_of(commit, _METRICS | {"history": [epoch]}, None)).text
    assert "validation 0.6 " in text and "validation 65 %" in text and "test loss  " not in text
    assert said in text and "65.00 % validation accuracy, loss 0.6000, 7 examples" in text


def metrics_of_many(num_classes: int, *, num_shown: int | None = None, num_epochs: int = 20_000) -> dict[str, Any]:
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
        "wrong": [{"position": n, "label": 3, "predicted": 7, "probability": 0.9} for n in range(200)],
    }
    epoch = {"loss": 2.0, "accuracy": 0.25, "test_loss": 1.5, "test_accuracy": 0.5, "learning_rate": 0.1}
    history = [epoch | {"learning_rate": 0.1 / (1 + number % 97)} for number in range(num_epochs)]
    return _METRICS | {"test": test, "history": history}


@pytest.mark.parametrize("num_shown", [None, 100])
def test_page_of_a_thousand_classes_is_bounded_and_shows_the_worst(num_shown: int | None) -> None:
    metrics = metrics_of_many(1000, num_shown=num_shown)
    if num_shown:
        metrics["test"]["confusion_classes"] = [*range(num_shown)]
    page = page_of(metrics=metrics)
    assert len(page) < 200_000
    shown = Page(page)
    assert "The 30 of 1000 classes that are recalled least; metrics.json has all." in shown.text
    assert "The 30 of 1000 classes with the most mistakes." in shown.text
    assert shown.text.count("class number 3 ") >= 3
    cells = [attributes for tag, attributes in shown.tags if tag == "td" and "style" in attributes]
    assert len(cells) == 30 * 29
    assert all(len(line.split()) <= 501 for line in shown.lines())


def test_largest_page_is_below_500_kb() -> None:
    """300 epochs, 100 classes, every name and text as long as it can be, pictures of noise in colour, a champion beside."""
    metrics = metrics_of_many(100, num_epochs=300)
    for number, one in enumerate(metrics["test"]["classes"]):
        one["name"] = f"{number}" + "\u4e00" * 1000
    long = "\u4e00" * 1200
    numbers = {f"{long}{number}": long for number in range(100)} | {"metric": long, "lowest_recall_class": long}
    gate = _GATE | {
        "reason": long,
        "model": long[:1000],
        "numbers": numbers,
        "compared_with": {"version": 1, "run": long},
    }
    config = {f"{long}{number}": {long: long} for number in range(100)} | {"promotion": {"min_accuracy": long}}
    commit = _COMMIT | {"config": config, "lineage": {"image": long, "packages": {long: long}}}
    commit["metrics"] = _COMMIT["metrics"] | {f"test_{long}{number}": 1.0 for number in range(100)}
    goodput = {"ratio": 0.5, "wall_seconds": 1.0, "seconds": {f"{long[:999]}{number}": 1.0 for number in range(500)}}
    random = np.random.default_rng(1)
    pictures = {n: random.integers(0, 256, (read.PICTURE_SIDE,) * 2 + (3,), dtype=np.uint8) for n in range(20)}
    rival = facts_rival(committed_of(commit))
    page = page_of(commit, metrics | {"goodput": goodput}, gate, pictures=pictures, rival=rival, missing=(long,) * 4)
    assert Page(page).count("img") == 20
    assert len(page) < 500_000, len(page)


def test_page_of_twenty_classes_shows_them_all_in_their_order() -> None:
    shown = Page(page_of(metrics=metrics_of_many(20, num_epochs=30)))
    assert "classes with the most mistakes" not in shown.text
    assert len([tag for tag, attributes in shown.tags if tag == "td" and "style" in attributes]) == 380
    rows = shown.text.partition("Recall: ")[2]
    assert rows.index("class number 2 ") < rows.index("class number 3 ")


@pytest.mark.parametrize("shape", [(28, 28), (56, 28, 3), (1, 1)])
def test_pictures_are_png_files_with_the_pixels_of_the_store(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    page = Page(page_of(pictures={3: picture}))
    [image] = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["alt"] == "test example 3: one, taken for zero"
    kind, _, data = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == to_png(picture)
    assert (pixels_of(base64.b64decode(data)) == picture).all()
    assert "is one , taken for zero 90.00 % sure, test example 3" in re.sub(r"\s+", " ", page.text)


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """As a program reads them that knows the format: every chunk is checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        body = png[place + 4 : place + 8 + length]
        assert zlib.crc32(body) == int.from_bytes(png[place + 8 + length : place + 12 + length], "big")
        chunks[body[:4]], place = body[4:], place + 12 + length
    head = chunks[b"IHDR"]
    width, height, depth, colour = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big"), head[8], head[9]
    assert depth == 8 and [*chunks] == [b"IHDR", b"IDAT", b"IEND"]
    shape = (height, width) if colour == 0 else (height, width, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape(shape)


def test_mistakes_without_pictures_are_a_table() -> None:
    page = Page(page_of())
    assert page.count("img") == 0
    assert "3 one zero 90.00 %" in re.sub(r"\s+", " ", page.text)
    test = _METRICS["test"] | {"wrong": []}
    assert "made no mistake" in Page(page_of(metrics=_METRICS | {"test": test})).text


# ---- from a store


def commit_with(store: Store, run_id: str, *, num_wrong: int, more: dict[str, Any] | None = None) -> CommittedRun:
    """A committed run with metrics.json and, in its predictions, pictures or what `more` has in their place."""
    files = dict(files_of(f"weights of {run_id}", num_wrong=num_wrong))
    arrays = safetensors.numpy.load(files[read.PREDICTIONS_FILE])
    files[read.PREDICTIONS_FILE] = safetensors.numpy.save(arrays | (more or {}))
    epoch = {"epoch": 1, "loss": 1.0, "accuracy": 0.5, "seconds": 1.0, "examples_per_second": 9.0}
    classes = [one | {"recall": 1 - num_wrong / 50} for one in _METRICS["test"]["classes"]]
    test = _METRICS["test"] | {"classes": classes}
    files[read.METRICS_FILE] = canonical_json(_METRICS | {"test": test, "history": [epoch]})
    digest = write.begin_run(store, run_id, inputs={"run": run_id}, config={})
    stored = write.upload(store, run_id, attempt_id="a", files=files)
    content = content_of(run_id, "a", stored, digest=digest, weights=f"weights of {run_id}", num_wrong=num_wrong)
    return write.commit(store, run_id, content=content)


def crown(store: Store, committed: CommittedRun) -> None:
    """Make it champion of `digits` by hand."""
    to = committed.model(created=read.created_at(store, committed))
    made = champion.move(store, "digits", before=None, to=to, by="promote", who="me", why="", forced=True)
    assert made


def text_of(store: Store, committed: CommittedRun, *, gate: Any = _GATE) -> str:
    page = report_on(store, committed, gate_of(gate), settings=StoreSection())
    return re.sub(r"\s+", " ", Page(page).text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{tmp_path}/out"), environ={})


def pictures_in(shape: tuple[int, ...] = (1, 2, 2), dtype: Any = np.uint8) -> dict[str, Any]:
    return {read.MISTAKE_POSITIONS: np.array([3]), read.MISTAKE_PICTURES: np.zeros(shape, dtype)}


def test_report_is_made_from_the_store_alone_with_pictures_and_the_champion(store: Store) -> None:
    theirs = commit_with(store, "q", num_wrong=5)
    crown(store, theirs)
    ours = commit_with(store, "r", num_wrong=10, more=pictures_in())
    facts = gather(store, ours, gate_of(), settings=StoreSection())
    assert facts.pictures.keys() == {3} and facts.missing == ()
    text = text_of(store, ours)
    for wanted in (
        "the champion of digits was version 1, run q , champion since 20",
        "UTC, by hand (promote).",
        "class examples recall champion's difference precision zero 2 80.00 % 90.00 % -10.00 points 66.67 %",
        "champion (test) 90 %",
        "is one , taken for zero",
    ):
        assert wanted in text, text


def test_report_says_when_the_champion_was_removed_since(store: Store) -> None:
    crown(store, commit_with(store, "q", num_wrong=5))
    write.remove_commit(store, "q")
    text = text_of(store, commit_with(store, "r", num_wrong=10))
    assert "Its run is not in the store any more." in text and "committed, and removed by retention" in text
    assert "champion's difference" not in text


def test_report_without_a_record_of_the_champion_names_it(store: Store) -> None:
    text = text_of(store, commit_with(store, "r", num_wrong=10))
    assert "version 1, run q . Its run is not in the store any more." in text


@pytest.mark.parametrize("compared", [None, {}, {"version": "1", "run": "q"}, {"version": 1, "run": ["q"]}])
def test_report_of_a_run_that_had_no_champion_beside_it(compared: Any, store: Store) -> None:
    gate = _GATE | {"compared_with": compared}
    assert "There was no champion of digits" in text_of(store, commit_with(store, "r", num_wrong=1), gate=gate)


def test_run_of_an_older_version_has_no_pictures_and_a_table(store: Store) -> None:
    text = text_of(store, commit_with(store, "r", num_wrong=10))
    assert "There are no pictures" in text and "3 one zero 90.00 %" in text and "Could not be read" not in text


@pytest.mark.parametrize(
    ("run_id", "said"),
    [
        ("old.first", "There was no champion of"),
        ("old.refused", "won (only this run is right)"),
        ("local.digits-c73f0e26", "No verdict"),
    ],
)
def test_runs_of_a_store_of_an_old_version_have_a_report(run_id: str, said: str, store: Store, tmp_path: Path) -> None:
    with tarfile.open(REPOSITORY / "tests/job/upgrade/store.tar.xz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    committed = read.read_commit(store, run_id)
    assert committed
    page = Page(report_on(store, committed, read_gate(store, run_id), settings=StoreSection()))
    assert "There are no pictures" in page.text and "Could not be read" not in page.text
    assert said in page.text


_DAMAGED: dict[str, dict[str, Any]] = {
    "no positions": {read.MISTAKE_PICTURES: np.zeros((1, 2, 2), np.uint8)},
    "no pictures": {read.MISTAKE_POSITIONS: np.array([3])},
    "floats": pictures_in(dtype=np.float32),
    "two for one position": pictures_in((2, 2, 2)),
    "too large": pictures_in((1, 57, 2)),
    "no pixels": pictures_in((1, 0, 2)),
    "five channels": pictures_in((1, 2, 2, 5)),
    "a row": pictures_in((1, 4)),
    "too many": {read.MISTAKE_POSITIONS: np.arange(21), read.MISTAKE_PICTURES: np.zeros((21, 2, 2), np.uint8)},
}


@pytest.mark.parametrize("more", _DAMAGED.values(), ids=_DAMAGED)
def test_damaged_pictures_cost_the_pictures_and_neither_report_nor_gate(more: dict[str, Any], store: Store) -> None:
    ours = commit_with(store, "r", num_wrong=10, more=more)
    text = text_of(store, ours)
    assert "Could not be read: the pictures of the mistakes: predictions.safetensors: mistake_positions and" in text
    assert "3 one zero 90.00 %" in text
    assert len(read.read_predictions(store, ours).labels) == 50


def test_altered_predictions_cost_the_pictures(store: Store, tmp_path: Path) -> None:
    ours = commit_with(store, "r", num_wrong=10, more=pictures_in())
    [path] = tmp_path.rglob("predictions.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "is not the object that was committed" in text_of(store, ours)
    path.unlink()
    assert "is named by the COMMIT and does not exist" in text_of(store, ours)


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
    page = Page(stored.read_bytes())
    assert "Promoted to version 1 of digits" in page.text
    [metrics] = tmp_path.glob("out/runs/r/attempts/*/metrics.json")
    assert page.count("img") == min(20, len(json.loads(metrics.read_bytes())["test"]["wrong"])) > 0

    assert run_job("report", "r", "--to=new/folder/again.html").code == 0
    refused = run_job("report", "r", "--to=/dev/full")
    assert (refused.code, refused.stderr.count("\n")) == (69, 1)
    assert "--to: /dev/full cannot be written: No space left on device; choose another file" in refused.stderr
    assert run_job("report", "other").code == 66

    assert run_job("run", *QUICK, "--run.id=q", "--observe.report=false").code == 0
    assert not [*tmp_path.glob("out/runs/q/logs/*/report.html")]
