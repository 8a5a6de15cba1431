"""Champion versions: one winner a number, carried accuracies, damaged records, and how a model is named."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from job.config import StoreSection
from job.config_sources import load_config
from job.contract import champion_key, claim_key, retirement_key
from job.errors import ConflictError, IntegrityError, NotFoundError
from job.registry import champion
from job.registry.champion import Move
from job.registry.rules import GateRecord
from job.runs.read import CommittedModel
from job.runs.write import remove_commit
from job.store.open import open_store
from job.store.store import Store
from tests.job.runs.committed_runs import commit_run

MODEL = "plain"


def to(run: str, *, accuracy: float = 0.9, digest: str = "e") -> CommittedModel:
    return CommittedModel(
        run=run, created="2026-01-01", dataset=MODEL, evaluation_digest=digest, weights_digest=run, accuracy=accuracy
    )


def move(store: Store, before: Move | None, target: CommittedModel) -> Move | None:
    return champion.move(store, MODEL, before=before, to=target, by="promote", who="me", why="test", forced=True)


def moved(store: Store, before: Move | None, target: CommittedModel) -> Move:
    made = move(store, before, target)
    assert made
    return made


class TestMove:
    def test_each_move_is_the_next_version_and_says_on_top_of_what(self, store: Store) -> None:
        assert champion.read_newest(store, MODEL) is None
        first = moved(store, None, to("a"))
        second = moved(store, first, to("b"))
        assert (first.version, first.from_version, first.from_run) == (1, None, None)
        assert (second.version, second.from_version, second.from_run) == (2, 1, "a")
        assert champion.read_newest(store, MODEL) == second
        assert list(champion.history(store, MODEL)) == [second, first]
        assert (second.who, second.why, second.by, second.forced) == ("me", "test", "promote", True)

    def test_whoever_is_late_moves_nothing(self, store: Store) -> None:
        first = moved(store, None, to("a"))
        second = moved(store, first, to("b"))
        assert move(store, first, to("c")) is None
        assert move(store, None, to("c")) is None
        assert champion.read_newest(store, MODEL) == second

    def test_of_many_at_once_one_moves(self, tmp_path: Path) -> None:
        barrier, won = threading.Barrier(8), []

        def compete(number: int) -> None:
            own = open_store(StoreSection(uri=f"file:{tmp_path}"), environ={})
            barrier.wait()
            won.append(move(own, None, to(f"r{number}")))

        threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [winner] = [made for made in won if made]
        assert champion.read_newest(open_store(StoreSection(uri=f"file:{tmp_path}"), environ={}), MODEL) == winner

    def test_claim_is_written_before_the_version(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        points: list[str] = []
        monkeypatch.setattr("job.store.backend.on_point", points.append)
        move(store, None, to("a"))
        created = [point.removeprefix("before create ") for point in points if point.startswith("before create ")]
        assert created == [claim_key("a", model=MODEL, version=1), champion_key(MODEL, version=1)]
        assert champion.claimed_versions(store, "a") == [(MODEL, 1)]

    def test_run_that_is_being_removed_cannot_become_champion(self, store: Store) -> None:
        store.create(retirement_key("a", token="0123456789abcdef"), b"{}")
        with pytest.raises(ConflictError, match=r"^run a is being removed, or was \(retention\.keep_runs\)"):
            move(store, None, to("a"))
        assert champion.read_newest(store, MODEL) is None


@pytest.mark.parametrize("gate", [{}, {"verdict": "promoted"}, {"numbers": []}, "text", 3])
def test_decision_that_cannot_be_read_does_not_hide_the_move(gate: object, store: Store) -> None:
    made = moved(store, None, to("a"))
    record = json.loads(made.to_bytes()) | {"gate": gate}
    store.put(champion_key(MODEL, version=1), json.dumps(record).encode())
    assert champion.read_newest(store, MODEL) == made


def anchor_of(made: Move, digest: str) -> tuple[float, str | None]:
    anchor = made.anchor_on(digest, metric="accuracy")
    assert anchor
    return anchor.value, anchor.run


def gate_record(run: str, numbers: dict[str, Any]) -> GateRecord:
    return GateRecord(
        run=run,
        model=MODEL,
        decided="2026-01-01",
        who="",
        verdict="promoted",
        rule="not_worse",
        reason="",
        numbers=numbers,
        compared_with={"version": 1, "run": "a"},
        version=2,
    )


class TestAnchors:
    def test_first_champion_on_a_test_split_is_what_later_ones_are_measured_by(self, store: Store) -> None:
        made = moved(store, None, to("a", accuracy=0.95))
        made = moved(store, made, to("b", accuracy=0.98))
        made = moved(store, made, to("c", accuracy=0.5, digest="other"))
        assert anchor_of(made, "e") == (0.95, "a")
        assert anchor_of(made, "other") == (0.5, "c")
        assert made.anchor_on("never seen", metric="accuracy") is None
        assert made.anchor_on("e", metric="auc") is None
        assert champion.read_newest(store, MODEL) == made

    def test_gate_says_when_another_takes_its_place(self, store: Store) -> None:
        made = moved(store, None, to("a", accuracy=0.9))
        for run, is_new in (("b", False), ("c", True), ("d", False)):
            gate = gate_record(run, {"accuracy": 0.95, "is_new_anchor": is_new})
            target = to(run, accuracy=0.95)
            after = champion.move(store, MODEL, before=made, to=target, by="gate", who="", why="", gate=gate)
            assert after
            made = after
        assert anchor_of(made, "e") == (0.95, "c")

    def test_a_new_test_split_every_night_does_not_grow_the_record_for_ever(self, store: Store) -> None:
        made = None
        for night in range(30):
            made = moved(store, made, to(f"r{night}", digest=f"e{night}"))
        assert made
        assert [each.evaluation_digest for each in made.anchors] == [f"e{night}" for night in range(10, 30)]

    def test_value_of_another_metric_is_carried_beside_the_accuracy(self, store: Store) -> None:
        made = None
        for run, auc in (("a", 0.9), ("b", 0.8)):
            gate = gate_record(run, {"metric": "auc", "auc": auc})
            made = champion.move(store, MODEL, before=made, to=to(run), by="gate", who="", why="", gate=gate)
        made = moved(store, made, to("c"))  # by hand: no metric was measured
        assert {(each.metric, each.value, each.run) for each in made.anchors} == {
            ("accuracy", 0.9, "a"),
            ("auc", 0.9, "a"),
        }

    def test_record_of_an_older_version_says_the_best_accuracy_alone(self, store: Store) -> None:
        made = moved(store, moved(store, None, to("a", accuracy=0.98)), to("b"))
        record = json.loads(made.to_bytes())
        assert record["best"] == [["e", 0.98]]  # what an older version of the program reads
        del record["anchors"]
        store.put(champion_key(MODEL, version=2), json.dumps(record).encode())
        older = champion.read_newest(store, MODEL)
        assert older
        assert anchor_of(older, "e") == (0.98, None)

    def test_runs_that_a_candidate_is_compared_with(self, store: Store) -> None:
        made = moved(store, None, to("a", accuracy=0.98))
        made = moved(store, made, to("b"))
        assert made.runs_to_compare_with() == {"a", "b"}
        assert moved(store, made, to("c", digest="other")).runs_to_compare_with() == {"c"}


class TestDamage:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "is not JSON"),
            (b"[]", "must hold a JSON object"),
            (b"{}", "it lacks accuracy, best"),
        ],
    )
    def test_record_that_is_none_is_refused(self, data: bytes, reason: str, store: Store) -> None:
        store.create(champion_key(MODEL, version=1), data)
        with pytest.raises(IntegrityError, match=reason):
            champion.read_newest(store, MODEL)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"version":1', b'"version":2'),
            (b'"model":"plain"', b'"model":"other"'),
            (b'"run":"a"', b'"run":"../a"'),
            (b'"best":[["e",0.9]]', b'"best":[["e"]]'),
            (b'"best":[["e",0.9]]', b'"best":7'),
            (b'"when":"2', b'"when":"x2'),
            (b'"value":0.9', b'"value":"0.9"'),
        ],
    )
    def test_altered_record_is_refused(self, old: bytes, new: bytes, store: Store) -> None:
        data = moved(store, None, to("a")).to_bytes()
        assert old in data
        store.put(champion_key(MODEL, version=1), data.replace(old, new))
        with pytest.raises(IntegrityError, match=r"^store: models/plain/champion/000000001.json is not the record"):
            champion.read_newest(store, MODEL)

    def test_names_that_are_no_version_are_left_alone(self, store: Store) -> None:
        store.create("models/plain/champion/notes.txt", b"")
        assert champion.read_newest(store, MODEL) is None

    def test_champion_without_a_commit_says_what_to_do(self, store: Store) -> None:
        made = moved(store, None, to("a"))
        with pytest.raises(IntegrityError, match=r"run a, which version 1 of plain names, has no COMMIT .*promote RUN"):
            champion.commit_of(store, made)
        commit_run(store, "b")
        made = moved(store, made, to("b"))
        remove_commit(store, "b")
        with pytest.raises(IntegrityError, match=r"run b, which version 2 of plain names, was removed; .*promote RUN"):
            champion.commit_of(store, made)


class TestName:
    @pytest.mark.parametrize(
        ("dataset", "name"),
        [
            ("mnist", "mnist"),
            ("emnist/digits", "emnist-digits"),
            ("My.data:load", "my.data-load"),
            ("../x", "x"),
            ("///", "model"),
        ],
    )
    def test_name_is_made_of_the_datasets(self, dataset: str, name: str) -> None:
        assert champion.model_name(load_config([]).config, dataset=dataset) == name
        given = load_config(["--promotion.model_name=served"]).config
        assert champion.model_name(given, dataset=dataset) == "served"

    def test_only_model_of_a_store_needs_no_name(self, store: Store) -> None:
        config = load_config([]).config
        with pytest.raises(NotFoundError, match=r"no run was promoted yet; if one was, correct store\.uri"):
            champion.choose_model(store, config)
        moved(store, None, to("a"))
        assert champion.choose_model(store, config) == "plain"
        champion.move(store, "b", before=None, to=to("a"), by="gate", who="", why="")
        with pytest.raises(NotFoundError, match="there are b, plain; name it"):
            champion.choose_model(store, config)
        assert champion.choose_model(store, load_config(["--promotion.model_name=b"]).config) == "b"
