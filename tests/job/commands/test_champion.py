"""promote, rollback, runs, show and verify in real processes, on committed runs made of plain arrays."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from job.commands.lookup import checked_model
from job.config import PromotionSection, StoreSection
from job.contract import champion_key
from job.errors import NotFoundError
from job.registry import champion
from job.registry.gate import Gate
from job.registry.retention import remove_runs
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import RunJob
from tests.job.runs.committed_runs import commit_run

MODEL = "plain"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{tmp_path / 'out'}", deadline_seconds=2), environ={})


def settle(store: Store, run: str, **how: Any) -> None:
    gate = Gate(store=store, model=MODEL, rules=PromotionSection(), who="test", reevaluate=None)
    gate.settle(commit_run(store, run, **how))


def champion_run(store: Store) -> str | None:
    newest = champion.read_newest(store, MODEL)
    return newest.run if newest else None


class TestPromote:
    def test_run_that_passes_the_gate_is_promoted_and_laid_out(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        commit_run(store, "b", num_wrong=4)
        done = run_job("promote", "b", "--why", "asked for by sales")
        assert done.code == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:3] == [
            "champion of plain: run b, version 2",
            "  before    version 1, run a",
            "  accuracy  0.9200",
        ]
        assert re.fullmatch(r"  by        \S.* on \S+: asked for by sales", lines[3])
        assert store.get("models/plain/versions/2/saved_model.pb") == b"graph"
        newest = champion.read_newest(store, MODEL)
        assert newest
        assert (newest.by, newest.forced, newest.why, newest.gate is not None) == (
            "promote",
            False,
            "asked for by sales",
            True,
        )

    def test_worse_run_is_refused_with_78_and_forced_for_ever_visibly(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        settle(store, "b", num_wrong=11)
        done = run_job("promote", "b")
        assert (done.code, done.stdout) == (78, "")
        assert re.fullmatch(
            r"mnist-job: error 78: run b is not promoted: accuracy 0\.7800 is 0\.1200 below the champion that all are "
            r"measured by .*; --force moves the champion all the same, and says so for ever",
            done.error,
        )
        assert champion_run(store) == "a"

        forced = run_job("promote", "b", "--force")
        assert (forced.code, forced.stdout.splitlines()[0]) == (0, "champion of plain: run b, version 2 (forced)")
        [shown] = json.loads(run_job("show", "b", "-o", "json").stdout)["champion"]
        assert (shown["forced"], shown["why"], shown["is_champion"]) == (True, "by hand", True)
        assert (
            json.loads(run_job("show", "b", "-o", "json").stdout)["gate"]["verdict"] == "refused"
        )  # what the gate said stays

    def test_another_dataset_needs_force_and_the_models_name(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a")
        commit_run(store, "b", dataset="digits", num_wrong=0)
        name = "--promotion.model_name=plain"
        done = run_job("promote", "b", name)
        assert done.code == 78
        assert "trained on digits, the champion on plain" in done.error
        assert run_job("promote", "b", name, "--force").code == 0
        assert champion_run(store) == "b"

    def test_champion_is_left_alone_and_its_layout_repaired(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a")
        done = run_job("promote", "a")
        assert done.code == 0
        assert re.fullmatch(r"a is the champion of plain already, since 20\S+ \(version 1\)\n", done.stdout)
        assert champion.list_versions(store, MODEL) == [1]
        assert store.get("models/plain/versions/1/saved_model.pb") == b"graph"

    def test_equal_weights_are_not_promoted_and_no_error(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a", weights="w")
        commit_run(store, "b", weights="w")
        done = run_job("promote", "b")
        assert (done.code, champion_run(store)) == (0, "a")
        assert done.stdout.startswith("run b is not promoted: same as champion")

    def test_damaged_run_is_not_promoted_even_by_force(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a")
        commit_run(store, "b")
        store.delete("runs/b/attempts/a/model/saved_model.pb")
        done = run_job("promote", "b", "--force")
        assert done.code == 65
        assert champion_run(store) == "a"

    def test_run_without_a_result_is_not_found(self, run_job: RunJob, store: Store) -> None:
        done = run_job("promote", "nothing")
        assert done.code == 66
        assert "run nothing has no COMMIT" in done.error


class TestRollback:
    def test_champion_before_comes_back_as_a_new_version(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        settle(store, "b", num_wrong=4)
        done = run_job("rollback", "--why=wrong sevens")
        assert done.code == 0, done.stderr
        assert done.stdout.splitlines()[:2] == ["champion of plain: run a, version 3", "  before    version 2, run b"]
        newest = champion.read_newest(store, MODEL)
        assert newest
        assert (newest.by, newest.why, newest.from_run) == ("rollback", "wrong sevens", "b")
        data = "variables/variables.data"
        assert store.get(f"models/plain/versions/3/{data}") == b"weights of a"
        assert run_job("rollback").code == 0  # and once more is undone
        assert champion_run(store) == "b"

    def test_any_earlier_champion_can_be_named(self, run_job: RunJob, store: Store) -> None:
        for run, num_wrong in (("a", 5), ("b", 4), ("c", 3)):
            settle(store, run, num_wrong=num_wrong)
        assert run_job("rollback", "--to=a").code == 0
        assert champion_run(store) == "a"

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ([], 66, "plain had no champion before run a; there is nothing to roll back to"),
            (["--to=a"], 64, "--to: run a is the champion of plain already; name an earlier one"),
            (["--to=b"], 66, "run b was never champion of plain; see mnist-job runs, or promote it"),
            (["--promotion.model_name=other"], 66, "model other has no champion in file:"),
        ],
    )
    def test_what_cannot_be_rolled_back_to_is_refused(
        self, arguments: list[str], code: int, message: str, run_job: RunJob, store: Store
    ) -> None:
        settle(store, "a", num_wrong=5)
        settle(store, "b", num_wrong=12)
        done = run_job("rollback", *arguments)
        assert (done.code, len(done.error.splitlines())) == (code, 1)
        assert message in done.error
        assert champion.list_versions(store, MODEL) == [1]

    def test_run_that_retention_removed_or_that_is_damaged_is_refused(self, run_job: RunJob, store: Store) -> None:
        for run, num_wrong in (("first", 6), ("a", 5), ("b", 4), ("c", 3)):
            settle(store, run, num_wrong=num_wrong)
        remove_runs(store, ["a"], keep_versions=2)
        done = run_job("rollback", "--to=a")
        assert done.code == 65
        assert "run a, which version 2 of plain names, was removed" in done.error
        store.delete("runs/b/attempts/a/model/saved_model.pb")
        assert run_job("rollback").code == 65
        assert champion_run(store) == "c"


class TestLists:
    def test_runs_say_who_is_champion_since_when_and_what_the_gate_said(self, run_job: RunJob, store: Store) -> None:
        for run, num_wrong in (("a", 5), ("b", 11), ("c", 4)):
            settle(store, run, num_wrong=num_wrong)
        store.create("runs/refused/logs/a/000000.jsonl", b"")
        store.create("runs/started/run.json", b"{}")
        rows = {row["run"]: row for row in json.loads(run_job("runs", "-o", "json").stdout)}
        assert [(row["state"], row["gate"]) for row in rows.values()] == [
            ("damaged", None),
            ("committed", "promoted (first)"),
            ("committed", "refused (max_accuracy_drop)"),
            ("committed", "promoted (not_worse)"),
            ("running", None),
        ]
        assert rows["a"]["champion"] is None
        assert re.fullmatch(r"plain 2 since 20\d\d-\d\d-\d\dT\d\d:\d\d", rows["c"]["champion"])
        heading, *table = run_job("runs", "--last=3").stdout.splitlines()
        assert heading.split() == [
            *("RUN", "STATE", "STARTED", "DURATION", "CODE", "DATASET", "ACCURACY"),
            *("LOSS", "VERDICT", "CHAMPION", "ATTEMPTS", "COMMITTED"),
        ]
        assert len(table) == 3

    def test_removed_runs_are_not_listed(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        settle(store, "b", num_wrong=11)
        remove_runs(store, ["b"], keep_versions=10)
        assert [row["run"] for row in json.loads(run_job("runs", "-o", "json").stdout)] == ["a"]


class TestVerify:
    def test_without_a_champion_it_waits_and_gives_up(self, run_job: RunJob, store: Store) -> None:
        done = run_job("verify", "--champion=plain", "--wait=1")
        assert done.code == 66
        assert "model plain has no champion" in done.error

    def test_pointer_to_other_weights_is_refused(self, run_job: RunJob, store: Store) -> None:
        settle(store, "a")
        key = champion_key(MODEL, version=1)
        data = json.loads(store.get(key) or b"")
        store.put(key, json.dumps(data | {"weights_digest": "others"}).encode())
        done = run_job("verify", "--champion=plain")
        assert done.code == 65
        assert "version 1 of plain names other weights than the COMMIT of its run" in done.error


@pytest.mark.parametrize("name", ["a\0b", "\udcff", "../x", "a/b", "A", "", "-a"])
def test_name_that_no_model_can_have_is_66(name: str) -> None:
    with pytest.raises(NotFoundError, match=r"no model can have this name; see promotion\.model_name$") as refused:
        checked_model(name)
    assert len(str(refused.value)) < 200
