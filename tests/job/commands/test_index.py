"""index.html of a model: what stands on it, what it costs, that no text becomes markup, and that it costs no run."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from job import contract
from job.commands.index import MAX_RUNS, index_of, write_index
from job.commands.index_page import Night, make_page
from job.config import Config, StoreSection
from job.registry import champion
from job.registry.retention import apply_retention
from job.registry.rules import GateRecord
from job.runs.read import CommittedModel
from job.store.open import open_store
from job.store.store import Store, Traffic
from tests.conftest import RunJob
from tests.job.commands.test_report import Page

_CONFIG = Config.model_validate({"data": {"source": "digits"}}).model_dump(mode="json")
_PLAIN = ("--data.source=digits", "--train.global_batch_size=16", "--train.epochs=1", "--observe.metrics_port=0")


class Nights:
    """A store that is filled as runs fill it."""

    def __init__(self, folder: Path) -> None:
        self.traffic = Traffic()
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.store: Store = open_store(StoreSection(uri=f"file:{folder}"), environ={}, traffic=self.traffic)

    def put(self, key: str, content: Any, *, when: float = 0.0) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        os.utime(path, (when, when))

    def begin(self, run: str, *, when: float = 0.0, config: Any = _CONFIG) -> None:
        self.put(contract.run_key(run), {"format": 1, "result_digest": "e", "config": config}, when=when)

    def commit(
        self,
        run: str,
        *,
        when: float = 1e9,
        accuracy: float = 0.9,
        model: str | None = None,
        is_reported: bool = True,
        down_seconds: float = 0.0,
    ) -> None:
        self.begin(run, when=when)
        config = {"promotion": {"model_name": model}}
        commit = {
            **{
                "run": run,
                "attempt": "a",
                "files": [],
                "weights_digest": run[:64],
                "result_digest": "e",
                "config": config,
            },
            **{"dataset": {"name": "digits", "digest": "d"}, "metrics": {"test_accuracy": accuracy, "test_loss": 0.5}},
            **{"counters": {"attempts": 3}, "goodput": {"wall_seconds": 200.0, "down_seconds": down_seconds}},
        }
        self.put(contract.commit_key(run), commit, when=when + 200)
        if is_reported:
            self.put(f"runs/{run}/logs/a/report.html", b"page", when=when + 201)

    def gate(self, run: str, verdict: Any, *, reason: str = "because", version: int | None = None) -> None:
        said: dict[str, Any] = {"run": run, "model": "digits", "who": "attempt a", "verdict": verdict, "rule": "rule"}
        said |= {"decided": "2026-11-24T00:00:00+00:00", "numbers": {}, "compared_with": None, "version": version}
        record = GateRecord(**said, reason=reason)
        self.put(contract.gate_key(run), record.to_json())

    def promote(self, run: str, *, accuracy: float = 0.9, by: champion.By = "gate") -> None:
        to = CommittedModel(
            **{"run": run, "created": "", "dataset": "digits", "evaluation_digest": "v", "weights_digest": "w"},
            accuracy=accuracy,
        )
        newest = champion.read_newest(self.store, "digits")
        assert champion.move(self.store, "digits", before=newest, to=to, by=by, who="me", why="")

    def page(self) -> Page:
        page = index_of(self.store, "digits")
        assert page is not None
        return Page(page)


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path / "store")


def test_page_tells_of_each_run_when_how_long_how_good_and_what_became_of_it(nights: Nights) -> None:
    for number, (run, verdict) in enumerate({"one": "promoted", "two": "refused", "three": "same"}.items()):
        nights.commit(run, when=1e9 + number * 86400, accuracy=0.9 + number / 100)
        nights.gate(run, verdict, reason=f"reason of {run}", version=1 if verdict == "promoted" else None)
    nights.promote("one")
    nights.begin("cut.off", when=1.1e9)
    nights.begin("failed", when=1.2e9)
    nights.put("runs/failed/attempts/a/attempt.json", {})
    nights.put("runs/failed/logs/a/metrics.prom", b'# TYPE x gauge\nmnist_train_exit_code{x="y"} 70.0\n', when=1.2e9)
    text = nights.page().text
    assert [text.index(f" {run} ") for run in ("failed", "cut.off", "three", "two")] == sorted(
        text.index(f" {run} ") for run in ("failed", "cut.off", "three", "two")
    ), "newest first"
    assert "2001-09-09 01:46 one promoted: version 1  champion 90.00 % 3 min 20 s 3" in text
    assert "2001-09-10 01:46 two refused reason of two 91.00 % 3 min 20 s 3" in text
    assert "three same reason of three 92.00 %" in text
    assert "failed failed (70)" in text
    assert "cut.off no result; last written 2004-11-09 11:33 - - 0" in text
    assert "Champion: version 1 , run  one , accuracy 90.00 %, since " in text


@pytest.mark.parametrize("accuracy", [0.0, 0.98, 1.0])
def test_the_curve_of_a_first_night_has_no_accuracy_that_there_is_none_of(nights: Nights, accuracy: float) -> None:
    nights.commit("one", accuracy=accuracy)
    shown = [float(text) for text in re.findall(r"(-?[\d.]+) %", nights.page().text)]
    assert 0.0 <= min(shown) <= max(shown) <= 100.0


def test_a_run_that_paused_began_before_its_pause_and_its_dot_is_where_it_was_committed(nights: Nights) -> None:
    """In a store that was copied, so that its files are younger than the run."""
    for number, (run, seconds) in enumerate({"one": 0.0, "two": 36_000.0, "three": 0.0}.items()):
        nights.commit(run, when=1e9 + number * 86400, down_seconds=seconds)
    page = nights.page()
    assert "2001-09-09 15:46 two" in page.text
    first, second, third = (float(str(each["cx"])) for tag, each in page.tags if tag == "circle" and each["r"] == "3")
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_a_rollback_and_a_promotion_by_hand_are_told(nights: Nights) -> None:
    for run in ("first", "second"):
        nights.commit(run)
    nights.promote("first")
    nights.promote("second", by="promote")
    nights.promote("first", by="rollback")
    text = nights.page().text
    assert "Champion: version 3" in text and "(rollback)" in text
    assert "first committed: version 1, version 3  champion" in text
    assert "second committed: version 2 90.00 %" in text


def test_links_lead_to_the_reports_from_where_the_page_is(nights: Nights) -> None:
    nights.commit("one")
    nights.commit("two")
    nights.commit("without", is_reported=False)
    nights.put("runs/two/logs/b/report.html", b"newer", when=1e10)
    write_index(nights.store, "digits")
    links = {str(attributes["href"]) for tag, attributes in nights.page().tags if tag == "a"}
    here = (nights.folder / contract.index_key("digits")).parent
    assert {(here / link).resolve().relative_to(nights.folder.resolve()).as_posix() for link in links} == {
        "runs/one/logs/a/report.html",
        "runs/two/logs/a/report.html",  # of the attempt that committed
    }


def test_runs_of_other_models_and_removed_ones_are_left_out_and_a_damaged_one_costs_its_row(nights: Nights) -> None:
    nights.commit("mine")
    nights.commit("theirs", model="other")
    nights.begin("begun.theirs", config={**_CONFIG, "promotion": {"model_name": "other"}})
    nights.begin("of.another.version", config={"no": "config"})
    nights.begin("gone")
    nights.put(
        contract.commit_key("gone"), {"run": "gone", "abandoned": "2026-11-24T00:00:00+00:00", "by": "retention"}
    )
    nights.begin("damaged")
    nights.put(contract.commit_key("damaged"), b"{")
    nights.put("runs/foreign/notes.txt", b"")
    assert " mine committed 90.00 %" in nights.page().text
    assert "1 run, newest first" in nights.page().text


@pytest.mark.security("S1")
def test_no_text_becomes_markup(nights: Nights) -> None:
    evil = "<script>alert(1)</script>&\x1b[31m\u202e'\""
    nights.commit("one")
    nights.gate("one", "refused", reason=evil)
    page = make_page(evil, [Night(run=evil, started_seconds=0.0, num_attempts=1, report=evil)], [], **_MADE)
    assert {"script"}.isdisjoint(tag for tag, _ in Page(page).tags)
    assert b"\x1b" not in page and "\u202e".encode() not in page
    assert "script" not in {tag for tag, _ in nights.page().tags}
    assert "<script>alert(1)</script>&\\u001b[31m" in nights.page().text


_MADE: Any = {"num_left_out": 0, "made_seconds": 0.0}


def test_the_requests_are_bounded_and_so_is_the_page(nights: Nights) -> None:
    """Of many runs with the longest names and reasons: two listings, one request a move, two a run that is shown."""
    for number in range(MAX_RUNS + 20):
        run = f"{number:04d}" + "x" * 240
        nights.commit(run, when=1e9 + number * 86400)
        nights.gate(run, "refused", reason="<" * 9000)
    nights.promote("0" * 253)
    nights.traffic.requests.clear()
    page = index_of(nights.store, "digits")
    assert page is not None and len(page) < 500_000
    assert dict(nights.traffic.requests) == {("list", "ok"): 2, ("get", "ok"): 1 + 2 * MAX_RUNS}
    assert index_of(nights.store, "digits", seconds=0.0) is None, "a store that is slow"
    assert "20 older runs of the store are left out" in Page(page).text
    assert f" {MAX_RUNS + 19:04d}{'x' * 240} " in Page(page).text


def test_retention_garbage_and_tables_leave_the_page_alone(nights: Nights) -> None:
    nights.commit("one")
    nights.promote("one")
    key = write_index(nights.store, "digits")
    assert key == "models/digits/index.html"
    nights.put("models/never.promoted/index.html", b"")
    apply_retention(nights.store, "digits", keep_runs=1, keep_versions=1)
    assert nights.store.get(key)
    assert champion.list_models(nights.store) == ["digits"]


def test_each_run_writes_it_again_and_the_command_too(run_plain: RunJob, tmp_path: Path) -> None:
    assert run_plain("run", *_PLAIN, "--run.id=one", "--observe.report=false").code == 0
    assert not list(tmp_path.glob("out/**/*.html")), "observe.report=false"
    assert run_plain("run", *_PLAIN, "--run.id=two").code == 0
    (page,) = tmp_path.glob("out/models/*/index.html")
    text = Page(page.read_bytes()).text
    assert " one " in text and " two " in text, "the run that is over is there, and its report has a link"
    assert page.read_text().count("report.html") == 1, "one had none"
    page.unlink()
    again = run_plain("report", "--index", f"--promotion.model_name={page.parent.name}")
    assert again.code == 0 and again.stdout.strip().endswith("/index.html")
    assert page.exists()
    assert run_plain("report", "--index", "--promotion.model_name=nobody").code == 66
    assert run_plain("report").code == 64


def test_a_store_that_refuses_it_costs_a_warning(run_plain: RunJob, tmp_path: Path) -> None:
    (tmp_path / "out/models/plain/index.html").mkdir(parents=True)
    done = run_plain("run", *_PLAIN, "--observe.log_format=json")
    assert done.code == 0
    assert "index.failed" in done.stdout
    last = max(tmp_path.glob("out/runs/*/logs/*/*.jsonl"))
    assert "index.failed" in last.read_text(), "the stored log has it"
