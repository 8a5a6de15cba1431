"""`runs` and `show`: how each run of a store stands, and what a person reads about it."""

import functools
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from job import contract
from job.commands import lookup
from job.config import PromotionSection
from job.contract import Event
from job.registry.gate import Gate
from job.runs import read, write
from job.store.open import open_store
from job.store.store import Store, Traffic
from tests.job.fuzz import Ended, call
from tests.job.runs.committed_runs import commit_run

ATTEMPT = "0b6a4f3c-0000-4000-8000-000000000001"


def _settle(store: Store, run: str, *, num_wrong: int, created: str) -> None:
    committed = commit_run(store, run, num_wrong=num_wrong, created=created)
    Gate(store=store, model="plain", rules=PromotionSection(), who="test", reevaluate=None).settle(committed)


def _begin(store: Store, run_id: str, **config: Mapping[str, Any]) -> None:
    write.begin_run(store, run_id, inputs={"run": run_id}, config=config)
    write.upload(store, run_id, attempt_id=ATTEMPT, files={read.ATTEMPT_FILE: b"{}"})


def _end(store: Store, run: str, *events: Mapping[str, Any], number: int = 0, attempt: str = ATTEMPT) -> None:
    """The last segment of a log, at a known time."""
    lines = [{"time": "2030-01-01T00:00:00.000Z", "run": run, "attempt": attempt, **event} for event in events]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    store.create(contract.log_key(run, attempt_id=attempt, number=number), data)


def _ended(outcome: str, code: int, **more: Any) -> Mapping[str, Any]:
    return {"event": Event.RUN_END, "outcome": outcome, "code": code, **more}


def _set_age(folder: Path, run: str, *, seconds: float) -> None:
    for path in (folder / "runs" / run).rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def _in_order(folder: Path, run: str, *keys: str) -> None:
    """Make these the newest objects of the run, one second after another: the clock of a folder is not as fine as a test."""
    _set_age(folder, run, seconds=100)
    now = time.time()
    for number, key in enumerate(keys):
        os.utime(folder / "runs" / run / key, (now - len(keys) + number,) * 2)


def _call(folder: Path, *command: str) -> Ended:
    return call(*command, f"--store.uri=file:{folder}")


def _rows(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    done = _call(folder, "runs", "-o", "json", *options)
    assert done.code == 0, done.error
    return {row["run"]: row for row in json.loads(done.output)}


class TestStates:
    def test_each_way_in_which_a_run_can_stand(self, store: Store, folder: Path) -> None:
        _settle(store, "a", num_wrong=5, created="2026-03-01T00:00:00.000+00:00")
        _begin(store, "failed")
        _end(store, "failed", {"event": Event.ERROR, "code": 70, "reason": "loss"}, _ended("failed", 70))
        _begin(store, "interrupted")
        _end(store, "interrupted", _ended("interrupted", 75))
        _begin(store, "stalled")
        _end(store, "stalled", {"event": Event.EPOCH_END}, _ended("stalled", 74), {"event": "thread.failed"})
        _end(store, "skipped", _ended("skipped", 0))
        _end(store, "refused", _ended("failed", 66))
        _begin(store, "running")
        _begin(store, "silent")
        _set_age(folder, "silent", seconds=400)
        _begin(store, "lost")
        _end(store, "lost", _ended("committed", 0))
        rows = _rows(folder)
        assert {run: (row["state"], row["code"]) for run, row in rows.items()} == {
            "a": ("committed", 0),
            "failed": ("failed", 70),
            "interrupted": ("interrupted", 75),
            "stalled": ("failed", 74),
            "skipped": ("skipped", 0),
            "refused": ("failed", 66),
            "running": ("running", None),
            "silent": ("no sign of life", None),
            "lost": ("damaged", 0),
        }
        assert rows["silent"]["last_sign_of_life"] < rows["silent"]["started"]  # the store's clock, set back
        table = _call(folder, "runs").output
        since = rows["silent"]["last_sign_of_life"][:16]
        assert re.search(rf"^silent +no sign of life since {since} ", table, re.MULTILINE)

    def test_a_new_attempt_after_a_failed_one_is_running(self, store: Store, folder: Path) -> None:
        _begin(store, "r")
        _end(store, "r", _ended("failed", 69))
        _set_age(folder, "r", seconds=100)
        write.upload(store, "r", attempt_id="second", files={read.ATTEMPT_FILE: b"{}"})
        [row] = _rows(folder).values()
        assert (row["state"], row["code"], row["attempts"]) == ("running", None, 2)
        _end(store, "r", _ended("interrupted", 75), number=1)
        [row] = _rows(folder).values()
        assert (row["state"], row["code"]) == ("interrupted", 75)

    def test_an_end_counts_also_when_a_warning_came_after_it_in_a_segment_of_its_own(
        self, store: Store, folder: Path
    ) -> None:
        """The page of the model is made after the segment with `run.end`."""
        _begin(store, "r")
        _end(store, "r", {"event": Event.ERROR, "reason": "bad data"}, _ended("failed", 65))
        _end(store, "r", {"event": "index.failed", "level": "warning"}, number=1)
        shown = json.loads(_call(folder, "show", "r", "-o", "json").output)
        assert (shown["state"], shown["code"], shown["reason"]) == ("failed", 65, "bad data")
        _set_age(folder, "r", seconds=4000)
        assert _rows(folder)["r"]["state"] == "failed"

    def test_an_end_that_a_start_follows_is_that_of_the_container_before(self, store: Store, folder: Path) -> None:
        """A container that was restarted in its pod goes on with the log of the attempt."""
        _begin(store, "r")
        _end(store, "r", _ended("failed", 69))
        _end(store, "r", {"event": Event.RUN_START}, {"event": Event.CHECKPOINT_SAVED}, number=1)
        assert _rows(folder)["r"]["state"] == "running"

    def test_a_refused_start_beside_a_live_attempt_is_no_end(self, store: Store, folder: Path) -> None:
        """It leaves `run.end` and no attempt.json: other settings under the same id, a slip of the keyboard."""
        _begin(store, "new")
        _begin(store, "known")
        _end(store, "known", {"event": Event.RUN_START}, {"event": Event.CHECKPOINT_SAVED})
        for run in ("new", "known"):
            _end(store, run, {"event": Event.RUN_START}, _ended("failed", 73), attempt="other")
            _in_order(folder, run, "logs/other/000000.jsonl")
        assert {run: (row["state"], row["code"]) for run, row in _rows(folder).items()} == {
            "new": ("running", None),
            "known": ("running", None),
        }
        _end(store, "known", _ended("failed", 65), number=1)
        _in_order(folder, "known", f"logs/{ATTEMPT}/000001.jsonl")
        assert _rows(folder)["known"]["code"] == 65

    def test_a_refused_start_after_an_attempt_that_has_ended_is_the_end(self, store: Store, folder: Path) -> None:
        _begin(store, "r")
        _end(store, "r", _ended("failed", 70))
        _end(store, "r", {"event": "index.failed"}, number=1)
        _end(store, "r", _ended("failed", 64), attempt="other")
        _in_order(folder, "r", "logs/other/000000.jsonl")
        assert _rows(folder)["r"]["code"] == 64

    @pytest.mark.parametrize(
        ("config", "state"),
        [
            ({"checkpoint": {"interval_seconds": 3600.0}}, "running"),
            ({"checkpoint": {"interval_seconds": 1.0}, "observe": {"stall_timeout_seconds": 5.0}}, "no sign of life"),
            ({"checkpoint": {"interval_seconds": "long"}, "observe": [1]}, "running"),
        ],
    )
    def test_how_long_it_may_be_silent_say_its_own_settings(
        self, store: Store, folder: Path, config: dict[str, Any], state: str
    ) -> None:
        """A live attempt writes with each checkpoint, and ends itself when nothing moves."""
        _begin(store, "r", **config)
        _set_age(folder, "r", seconds=60)
        assert _rows(folder)["r"]["state"] == state

    @pytest.mark.security("S5")
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"[" * 1000,
            b'{"event":"run.end"}\n',
            b'{"event":"run.end","time":"yesterday","outcome":"failed","code":1}\n',
            b'{"event":"run.end","time":"2026-03-01T00:00:00Z","outcome":"failed","code":1e3}\n',
            b'{"event":"run.end","time":"2026-03-01T00:00:00Z","outcome":[],"code":-1}\n',
            b'{"event":"run.end"}{"x":NaN}\xff\n',
        ],
    )
    def test_a_log_of_somebody_else_is_no_end(self, store: Store, folder: Path, data: bytes) -> None:
        _begin(store, "r")
        store.create(contract.log_key("r", attempt_id=ATTEMPT, number=0), data)
        done = _call(folder, "runs", "-o", "json")
        [row] = json.loads(done.output)
        assert (done.code, row["state"], row["code"]) == (0, "running", None)
        assert _call(folder, "show", "r").code == 0

    def test_a_refused_run_that_is_to_be_a_failure_ended_with_78(self, store: Store, folder: Path) -> None:
        committed = commit_run(store, "r", num_wrong=20)
        _settle(store, "better", num_wrong=1, created="2026-03-01T00:00:00.000+00:00")
        key = contract.commit_key("r")
        record = dict(committed.record) | {"config": {"promotion": {"refused_is_failure": True}}}
        store.put(key, json.dumps(record).encode())
        assert _rows(folder)["r"]["code"] is None, "the gate has not decided"
        gate = Gate(store=store, model="plain", rules=PromotionSection(), who="test", reevaluate=None)
        gate.settle(committed)
        row = _rows(folder)["r"]
        assert (row["verdict"], row["gate"], row["code"]) == ("refused", "refused (max_accuracy_drop)", 78)


class TestOrder:
    def test_rows_come_by_start_and_last_counts_from_the_newest_start(self, store: Store, folder: Path) -> None:
        """`a` was committed last and began first."""
        for run, day in (("b", 2), ("d", 4), ("a", 1), ("c", 3)):
            commit_run(store, run, created=f"2026-03-0{day}T00:00:00.000+00:00")
        _begin(store, "now")
        assert list(_rows(folder)) == ["a", "b", "c", "d", "now"]
        assert list(_rows(folder, "--last=2")) == ["d", "now"]
        store.put(contract.commit_key("broken"), b"[]")
        assert list(_rows(folder, "--last=2")) == ["d", "now"]
        assert next(iter(_rows(folder))) == "broken"
        table = _call(folder, "runs", "--last=2").output.splitlines()
        assert table[0].split() == [
            *("RUN", "STATE", "STARTED", "DURATION", "CODE", "DATASET", "ACCURACY"),
            *("LOSS", "VERDICT", "CHAMPION", "ATTEMPTS", "COMMITTED"),
        ]
        assert [line.split()[:3] for line in table[1:]] == [
            ["d", "committed", "2026-03-04T00:00"],
            ["now", "running", _rows(folder)["now"]["started"][:16]],
        ]

    def test_start_and_duration_of_all_attempts_with_the_pauses_between(self, store: Store, folder: Path) -> None:
        committed = commit_run(store, "r", created="2026-02-28T23:59:00.000+00:00")
        record = dict(committed.record) | {
            "counters": {"attempts": 2},
            "goodput": {"wall_seconds": 50.0, "down_seconds": 15.0},
        }
        store.put(contract.commit_key("r"), json.dumps(record).encode())
        row = _rows(folder)["r"]
        assert (row["started"], row["duration_seconds"]) == ("2026-02-28T23:58:55.000+00:00", 65.0)
        assert row["seconds"] == 50.0
        assert "1 min 5 s" in _call(folder, "runs").output

    def test_keys_of_json_that_were_there_stay(self, store: Store, folder: Path) -> None:
        commit_run(store, "r")
        before = ["run", "state", "dataset", "accuracy", "loss", "gate", "champion", "attempts", "seconds", "committed"]
        assert list(_rows(folder)["r"])[: len(before)] == before

    def test_requests_to_the_store_are_bounded(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many objects a run has: four each, and what the gate said of the shown ones only."""
        for number in range(30):
            commit_run(store, f"c{number}", created=f"2026-03-01T00:00:{number:02}.000+00:00")
        for number in range(10):
            _begin(store, f"u{number}")
            for segment in range(5):
                _end(store, f"u{number}", _ended("failed", 1), number=segment)
        all_runs, one_run = Traffic(), Traffic()
        for options, traffic in (((), all_runs), (("--last=1",), one_run)):
            monkeypatch.setattr(lookup, "open_store", functools.partial(open_store, traffic=traffic))
            _rows(folder, *options)
        assert all_runs.requests.total() <= 2 + 30 * 3 + 10 * 4
        assert one_run.requests.total() <= 2 + 30 * 2 + 10 * 4

    def test_a_run_in_which_two_attempts_warned_of_something_at_their_end_costs_seven_requests(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _begin(store, "r")
        for attempt in (ATTEMPT, "other"):
            for number in range(4):
                _end(store, "r", _ended("failed", 70), number=number, attempt=attempt)
            _end(store, "r", {"event": "index.failed"}, number=4, attempt=attempt)
        _in_order(folder, "r", "logs/other/000003.jsonl", "logs/other/000004.jsonl")
        traffic = Traffic()
        monkeypatch.setattr(lookup, "open_store", functools.partial(open_store, traffic=traffic))
        assert _rows(folder)["r"]["code"] == 70
        assert traffic.requests.total() <= 2 + 7


class TestShow:
    def test_page_of_a_committed_run(self, store: Store, folder: Path) -> None:
        _settle(store, "a", num_wrong=5, created="2026-02-28T00:00:00.000+00:00")
        _settle(store, "b", num_wrong=11, created="2026-02-28T01:00:00.000+00:00")
        page = _call(folder, "show", "b").output
        assert page.splitlines()[:6] == [
            "Run b: committed, exit code 0",
            "  started   2026-02-28 01:00:00 UTC",
            "  committed 2026-03-01 00:00:00 UTC, after 23 h 0 min",
            "  dataset   plain",
            "  test      accuracy 0.7800, loss 0.1000 on 50 examples",
            "  against   version 1, run a, accuracy 0.9000 (-0.1200)",
        ]
        assert re.search(
            r"^  gate      refused \(max_accuracy_drop\): accuracy 0\.7800 is 0\.1200 below", page, re.MULTILINE
        )
        assert f"  model     file:{folder}/runs/b/attempts/a/model\n" in page
        assert (
            f"  promote   mnist-job promote b --force --why TEXT --promotion.model_name=plain --store.uri=file:{folder}\n"
            in page
        )
        assert re.search(
            r"^  champion  is version 1 of plain since 20.* UTC by gate$",
            _call(folder, "show", "a").output,
            re.MULTILINE,
        )

    def test_json_is_what_it_was(self, store: Store, folder: Path) -> None:
        _settle(store, "a", num_wrong=5, created="2026-02-28T00:00:00.000+00:00")
        done = _call(folder, "show", "a", "-o", "json")
        shown = json.loads(done.output)
        record = json.loads((folder / contract.commit_key("a")).read_bytes())
        assert {name: value for name, value in shown.items() if name in record} == record
        assert set(shown) - set(record) == {"gate", "champion"}
        assert done.output == json.dumps(shown, indent=2, sort_keys=True) + "\n"

    @pytest.mark.security("S5")
    @pytest.mark.parametrize("goodput", [{"seconds": [1, 2]}, {"seconds": {"train": "x"}}, {"down_seconds": []}, [1]])
    def test_a_damaged_commit_is_refused(self, store: Store, folder: Path, goodput: object) -> None:
        committed = commit_run(store, "r")
        store.put(contract.commit_key("r"), json.dumps({**committed.record, "goodput": goodput}).encode())
        done = _call(folder, "show", "r")
        assert (done.code, "its goodput" in done.error) == (65, True)

    def test_page_of_a_run_that_failed(self, store: Store, folder: Path) -> None:
        _begin(store, "r", train={"epochs": 3, "learning_rate": 0.5}, run={"id": "r"}, model={"hidden_units": [8]})
        _end(store, "r", {"event": Event.ERROR, "reason": "the loss is not finite"}, _ended("failed", 70))
        store.create(contract.checkpoint_key("r", step=90, content_hash="0" * 16), b"x")
        os.utime(folder / contract.checkpoint_key("r", step=90, content_hash="0" * 16), (1e9, 1e9))
        page = _call(folder, "show", "r").output
        lines = page.splitlines()
        assert lines[0] == "Run r: failed"
        assert lines[1].startswith("  code      70 TrainingFailed: the loss is not finite, or")
        assert lines[2] == "  reason    the loss is not finite"
        assert "  goes on   from the checkpoint of step 90" in lines
        assert (
            "  again     mnist-job run --run.id=r '--model.hidden_units=[8]' --train.epochs=3 --train.learning_rate=0.5 "
            f"--store.uri=file:{folder}"
        ) in lines
        shown = json.loads(_call(folder, "show", "r", "-o", "json").output)
        assert (shown["state"], shown["code"], shown["champion"], shown["inputs"]) == ("failed", 70, [], {"run": "r"})

    def test_an_attempt_that_left_its_last_words_alone_began_as_long_before_as_they_say(
        self, store: Store, folder: Path
    ) -> None:
        _end(store, "r", {"event": Event.ERROR, "reason": "two\nlines"}, _ended("failed", 64, seconds=90.5))
        for path in (folder / "runs" / "r").rglob("*"):
            os.utime(path, (1893456000.0,) * 2)  # as it says: 2030-01-01
        page = _call(folder, "show", "r").output
        assert "  started   2029-12-31 23:58:29 UTC" in page
        assert "  reason    two lines" in page

    def test_page_of_a_run_that_goes_on_has_no_command_to_start_it(self, store: Store, folder: Path) -> None:
        _begin(store, "r")
        page = _call(folder, "show", "r").output
        assert page.startswith("Run r: running\n  started   20")
        assert "mnist-job run " not in page
        _set_age(folder, "r", seconds=4000)
        page = _call(folder, "show", "r").output
        assert re.match(r"Run r: no sign of life since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", page)
        assert "  again     mnist-job run --run.id=r" in page

    def test_page_of_a_skipped_run(self, store: Store, folder: Path) -> None:
        _end(store, "r", _ended("skipped", 0))
        page = _call(folder, "show", "r").output
        assert page.startswith("Run r: skipped\n")
        assert "nothing was trained" in page

    def test_unknown_and_foreign_runs_are_not_found(self, store: Store, folder: Path) -> None:
        store.create("runs/backup/readme.txt", b"foreign")
        for run in ("nope", "backup"):
            done = _call(folder, "show", run)
            assert (done.code, f"run {run} has no COMMIT" in done.error) == (66, True)

    @pytest.mark.security("S11")
    @pytest.mark.parametrize("output", ["text", "json"])
    def test_nothing_from_the_store_steers_a_terminal_or_makes_a_line(
        self, store: Store, folder: Path, output: str
    ) -> None:
        hostile = "\x1b]0;own\x07\u202e\nRun x: committed\r"
        _begin(store, "r", data={"uri": hostile, "source": hostile})
        _end(store, "r", {"event": Event.ERROR, "reason": hostile}, _ended("failed", 70))
        committed = commit_run(store, "c", dataset=hostile)
        record = dict(committed.record) | {"lineage": {"image": hostile, "revision": hostile}}
        store.put(contract.commit_key("c"), json.dumps(record).encode())
        for run in ("r", "c"):
            page = _call(folder, "show", run, "-o", output).output
            assert not re.search("[\x00-\x09\x0b-\x1f\u202e]|^Run x", page, re.MULTILINE)
            assert "\\u001b]0;own\\u0007" in page
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", _call(folder, "runs").output)
