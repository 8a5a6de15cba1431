"""The gate on a real store: what is compared with what, who writes first, and what a kill in between leaves."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job import clock
from job.config import PromotionSection, StoreSection
from job.contract import champion_key, gate_key
from job.digests import sha256_hex
from job.errors import ConflictError, IntegrityError
from job.registry import champion
from job.registry.gate import Gate, Reevaluate, read_gate, warn_of_resolution
from job.registry.retention import remove_runs
from job.runs import read
from job.store.open import open_store
from job.store.store import Store
from tests.job.runs.committed_runs import commit_run, probabilities_with

MODEL = "plain"
DAY = 86400.0


def no_model(files: Mapping[str, bytes], *, weights_digest: str) -> Any:
    raise AssertionError("no model may be loaded")


def gate(store: Store, reevaluate: Reevaluate | None = no_model, **rules: Any) -> Gate:
    return Gate(store=store, model=MODEL, rules=PromotionSection(**rules), who="test", reevaluate=reevaluate)


def settle(store: Store, run: str, **how: Any) -> tuple[str, str]:
    """Commit a run and let the gate decide; returns verdict and rule."""
    record = gate(store).settle(commit_run(store, run, **how))
    return record.verdict, record.rule


def force(store: Store, run: str, **how: Any) -> None:
    """Commit a run and make it champion by hand."""
    commit = commit_run(store, run, **how)
    to = commit.model(created=read.created_at(store, commit))
    newest = champion.read_newest(store, MODEL)
    assert champion.move(store, MODEL, before=newest, to=to, by="promote", who="", why="", forced=True)


def champion_run(store: Store) -> str | None:
    newest = champion.read_newest(store, MODEL)
    return newest.run if newest else None


class TestDecision:
    def test_first_worse_and_better(self, store: Store) -> None:
        assert settle(store, "a", num_wrong=5) == ("promoted", "first")
        assert settle(store, "b", num_wrong=11) == ("refused", "max_accuracy_drop")
        assert champion_run(store) == "a"
        assert settle(store, "c", num_wrong=4) == ("promoted", "not_worse")
        assert champion_run(store) == "c"

    def test_decision_is_kept_with_its_numbers(self, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        settle(store, "b", num_wrong=11)
        decided = read_gate(store, "b")
        assert decided
        record = decided.to_json()
        assert record.pop("decided").startswith("20")
        assert record == {
            "format": 1,
            "run": "b",
            "model": MODEL,
            "who": "test",
            "verdict": "refused",
            "rule": "max_accuracy_drop",
            "reason": "accuracy 0.7800 is 0.1200 below the champion that all are measured by (0.9000), p = 0.016 is below 0.05; "
            "promotion.max_accuracy_drop is 0.002",
            "numbers": {
                "accuracy": 0.78,
                "examples": 50,
                "lowest_recall": 0.75,
                "lowest_recall_class": 2,
                "champion_accuracy": 0.9,
                "anchor_accuracy": 0.9,
                "only_champion_right": 6,
                "only_candidate_right": 0,
                "p_value": pytest.approx(2**-6),
                "gain_p_value": pytest.approx(1.0),
                "anchor_p_value": pytest.approx(2**-6),
                "anchor_gain_p_value": pytest.approx(1.0),
            },
            "compared_with": {"version": 1, "run": "a"},
            "version": None,
        }
        promoted = read_gate(store, "a")
        newest = champion.read_newest(store, MODEL)
        assert newest
        assert newest.gate == promoted

    def test_commit_is_not_touched(self, store: Store) -> None:
        commit_run(store, "a")
        before = store.get("runs/a/COMMIT.json")
        settle(store, "a")
        assert store.get("runs/a/COMMIT.json") == before

    def test_same_weights_are_not_promoted_again(self, store: Store) -> None:
        settle(store, "a", weights="w")
        assert settle(store, "b", weights="w") == ("same", "same_weights")
        assert champion_run(store) == "a"

    def test_another_dataset_does_not_displace_the_champion(self, store: Store) -> None:
        settle(store, "a", num_wrong=9)
        assert settle(store, "b", num_wrong=0, dataset="digits") == ("refused", "other_dataset")
        assert champion_run(store) == "a"

    def test_slow_old_run_does_not_displace_a_newer_one(self, store: Store) -> None:
        settle(store, "new", num_wrong=9, created="2026-02-02T00:00:00.000+00:00")
        old = {"num_wrong": 0, "created": "2026-02-01T00:00:00.000+00:00"}
        assert settle(store, "old", **old) == ("refused", "older_run")
        assert champion_run(store) == "new"

    @pytest.mark.parametrize(
        ("champion_created", "champion_begun", "created", "begun", "verdict"),
        [
            (
                "2126-01-01",
                99.0,
                "now",
                0.0,
                "promoted",
            ),  # night 3 was in the next century, and so were the times of its files
            ("tomorrow", 24.0, "now", 0.0, "promoted"),
            ("tomorrow", -24.0, "now", 0.0, "promoted"),  # the store knew better
            ("2126-01-01", -0.1, "now", 0.0, "promoted"),
            ("yesterday", -24.0, "1970-01-01", 0.0, "promoted"),  # tonight's clock is wrong, and the store's is not
            ("yesterday", -24.0, "1999-12-31", -2.0, "promoted"),
            ("now", 0.0, "yesterday", -24.0, "refused"),  # slow and old
            ("now", 0.0, "yesterday", 0.0, "refused"),  # a copied store: all files are of one time
            ("now", 0.0, "yesterday", 0.5, "refused"),
            ("yesterday", 0.0, "2020-01-01", -9.0, "refused"),
        ],
    )
    def test_run_that_only_a_wrong_clock_calls_older_is_not_refused_for_it(
        self,
        champion_created: str,
        champion_begun: float,
        created: str,
        begun: float,
        verdict: str,
        store: Store,
        folder: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """`begun`: hours from now, by the clock of the store."""
        days = {"yesterday": -1.0, "now": 0.0, "tomorrow": 1.0}

        def settle_at(run: str, created: str, begun: float) -> str:
            when = (
                clock.timestamp(clock.now() + DAY * days[created])
                if created in days
                else f"{created}T00:00:00.000+00:00"
            )
            commit = commit_run(store, run, num_wrong=9 if run == "old" else 0, created=when)
            stamp = clock.now() + 3600.0 * begun
            os.utime(folder / "runs" / run / "run.json", (stamp, stamp))
            return gate(store).settle(commit).verdict

        assert settle_at("old", champion_created, champion_begun) == "promoted"
        with caplog.at_level(logging.WARNING, logger="job"):
            assert settle_at("new", created, begun) == verdict
        assert ("gate.clock_was_wrong" in caplog.messages) == (verdict == "promoted")
        assert champion_run(store) == ("new" if verdict == "promoted" else "old")

    def test_drop_is_counted_from_the_champion_that_all_are_measured_by(self, store: Store) -> None:
        settle(store, "a", num_wrong=2)
        force(store, "b", num_wrong=10)
        record = gate(store, max_accuracy_drop=0.03).settle(commit_run(store, "c", num_wrong=10))
        assert (record.verdict, record.rule) == ("refused", "max_accuracy_drop")
        assert (record.numbers["anchor_accuracy"], record.numbers["p_value"]) == (0.96, 1.0)
        assert record.numbers["anchor_p_value"] == pytest.approx(2**-8)  # by the pairs: the predictions of a are there

    def test_anchor_that_is_gone_is_compared_by_its_accuracy(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        settle(store, "a", num_wrong=2)
        force(store, "b", num_wrong=10)
        store.delete("runs/a/attempts/a/predictions.safetensors")
        record = gate(store).settle(commit_run(store, "c", num_wrong=10))
        assert record.verdict == "refused"
        assert record.numbers["anchor_p_value"] == pytest.approx(0.0139, abs=1e-4)
        [warning] = [record for record in caplog.records if record.getMessage() == "gate.anchor_unreadable"]
        assert vars(warning)["fields"]["run_of_anchor"] == "a"

    def test_one_example_is_no_reason(self, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        assert settle(store, "b", num_wrong=6) == ("promoted", "not_worse")

    def test_chance_makes_no_first_champion(self, store: Store) -> None:
        assert settle(store, "a", num_wrong=37) == ("refused", "majority")
        assert champion_run(store) is None

    def test_drift_by_another_metric_is_followed_along_the_champions(self, store: Store) -> None:
        by_auc = gate(store, metric="auc")
        for run, num_wrong in (("a", 2), ("b", 4)):
            assert by_auc.settle(commit_run(store, run, num_wrong=num_wrong)).verdict == "promoted"
        newest = champion.read_newest(store, MODEL)
        assert newest
        anchors = {each.metric: each for each in newest.anchors}
        assert (anchors["auc"].run, anchors["accuracy"].run) == ("a", "a")
        record = by_auc.settle(commit_run(store, "c", num_wrong=9))
        assert (record.verdict, record.rule) == ("refused", "max_accuracy_drop")
        assert record.numbers["anchor_auc"] == anchors["auc"].value

    def test_metric_of_the_users_own_comes_from_the_commits(self, store: Store) -> None:
        own = gate(store, metric="mine", max_accuracy_drop=0.01)
        assert (
            own.settle(commit_run(store, "a", metrics={"test_mine": 0.7})).reason
            == "the first champion, with mine 0.7000"
        )
        worse = own.settle(commit_run(store, "b", metrics={"test_mine": 0.6}))
        assert (worse.verdict, worse.rule) == ("refused", "max_accuracy_drop")
        better = own.settle(commit_run(store, "c", metrics={"test_mine": 0.695}))
        assert (better.verdict, better.numbers["anchor_test_mine"]) == ("promoted", 0.7)
        assert own.settle(commit_run(store, "d")).rule == "no_metric"


class TestClasses:
    @pytest.mark.parametrize("digest", ["e", "another"])
    def test_other_names_are_refused_whatever_the_test_split(self, digest: str, store: Store) -> None:
        settle(store, "a", num_wrong=9, class_names=("cat", "dog", "emu", "fox"))
        how = {"num_wrong": 0, "evaluation_digest": digest}
        assert settle(store, "b", class_names=("dog", "cat", "emu", "fox"), **how) == ("refused", "other_classes")
        assert settle(store, "c", class_names=("cat", "dog", "emu", "gnu"), **how) == ("refused", "other_classes")
        assert champion_run(store) == "a"

    def test_equal_names_and_runs_without_names_are_compared(self, store: Store) -> None:
        names = ("cat", "dog", "emu", "fox")
        settle(store, "a", num_wrong=9, class_names=names)
        assert settle(store, "b", num_wrong=5, class_names=names) == ("promoted", "not_worse")
        assert settle(store, "c", num_wrong=4) == ("promoted", "not_worse")


class TestOtherTestSplit:
    def test_champion_is_scored_again_on_the_candidates_examples(self, store: Store) -> None:
        settle(store, "a", num_wrong=5, evaluation_digest="last month's")
        seen: list[tuple[Mapping[str, bytes], str]] = []

        def predict(files: Mapping[str, bytes], *, weights_digest: str) -> Any:
            seen.append((files, weights_digest))
            return probabilities_with(2)

        record = gate(store, predict).settle(commit_run(store, "b", num_wrong=9))
        files = {"saved_model.pb": b"graph", "variables/variables.data": b"weights of a"}
        assert seen == [(files, sha256_hex(b"weights of a"))]
        assert (record.verdict, record.numbers["champion_accuracy"]) == ("refused", 0.96)

    @pytest.mark.security("S5")
    def test_champion_whose_model_cannot_be_used_refuses_by_name_and_fails_no_run(self, store: Store) -> None:
        settle(store, "a", evaluation_digest="last month's")

        def refuse(files: Mapping[str, bytes], *, weights_digest: str) -> Any:
            raise IntegrityError("the model of the champion has the operation 'WriteFile'")

        record = gate(store, refuse).settle(commit_run(store, "b", num_wrong=0))
        assert (record.verdict, record.rule) == ("refused", "not_comparable")
        assert record.reason.endswith("examples: the model of the champion has the operation 'WriteFile'")
        assert champion_run(store) == "a"

    @pytest.mark.security("S5")
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (np.full((50, 4), np.nan), "received numbers that are not finite"),
            (np.full((50, 4), np.inf), "received numbers that are not finite"),
            (np.full((50, 4), 1.0), "received 1, and sums that differ by 3"),
            (np.full((50, 4), 0.0), "received 0, and sums that differ by 1"),
            (np.tile([2.0, -1.0, 0.0, 0.0], (50, 1)), "received -1, and sums that differ by 0"),
            (np.full((49, 4), 0.25), "of shape [50, 4], received [49, 4]"),
        ],
    )
    def test_champion_whose_answer_is_no_probabilities_refuses(self, answer: Any, reason: str, store: Store) -> None:
        settle(store, "a", evaluation_digest="last month's")
        record = gate(store, lambda files, **_: answer).settle(commit_run(store, "b", num_wrong=0))
        assert (record.verdict, record.rule) == ("refused", "not_comparable")
        assert reason in record.reason

    def test_the_same_examples_need_no_model(self, store: Store) -> None:
        settle(store, "a", num_wrong=5, evaluation_digest="this month's")
        assert settle(store, "b", num_wrong=3, evaluation_digest="this month's") == ("promoted", "not_worse")

    @pytest.mark.parametrize("how", [{"image_shape": (3, 3)}])
    def test_model_for_other_images_is_not_asked(self, how: dict[str, Any], store: Store) -> None:
        settle(store, "a", evaluation_digest="last month's", **how)
        assert settle(store, "b", num_wrong=0) == ("refused", "not_comparable")

    def test_by_hand_there_are_no_examples_to_score_it_on(self, store: Store) -> None:
        settle(store, "a", evaluation_digest="last month's")
        newest = champion.read_newest(store, MODEL)
        assert gate(store, None).assess(commit_run(store, "b"), newest).rule == "not_comparable"


class TestOnce:
    def test_what_was_decided_first_stands(self, store: Store) -> None:
        settle(store, "a", num_wrong=5)
        settle(store, "b", num_wrong=11)
        before = store.get(gate_key("b"))
        commit = commit_run(store, "b", num_wrong=11)
        assert gate(store, max_accuracy_drop=0.9).settle(commit).verdict == "refused"
        assert store.get(gate_key("b")) == before
        assert champion_run(store) == "a"

    def test_attempt_killed_after_the_move_is_completed_and_moves_no_second_time(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def kill(point: str) -> None:
            if point == f"after create {champion_key(MODEL, version=1)}":
                raise KeyboardInterrupt

        commit = commit_run(store, "a", num_wrong=5)
        monkeypatch.setattr("job.store.backend.on_point", kill)
        with pytest.raises(KeyboardInterrupt):
            gate(store).settle(commit)
        monkeypatch.setattr("job.store.backend.on_point", None)
        assert read_gate(store, "a") is None
        settle(store, "b", num_wrong=4)  # and another one has been promoted since

        record = gate(store).settle(commit)

        assert (record.verdict, record.version) == ("promoted", 1)
        assert read_gate(store, "a") == record
        assert champion_run(store) == "b"
        assert champion.list_versions(store, MODEL) == [1, 2]

    def test_rival_that_moves_first_makes_the_gate_decide_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both are the first champion when they look; one has to see the other."""
        commit, rivals = commit_run(store, "a", num_wrong=5), [commit_run(store, "b", num_wrong=2)]
        other = open_store(StoreSection(uri=store.uri), environ={})

        def act(point: str) -> None:
            if point == f"before create {champion_key(MODEL, version=1)}" and rivals:
                gate(other).settle(rivals.pop())

        monkeypatch.setattr("job.store.backend.on_point", act)
        record = gate(store).settle(commit)
        assert (record.verdict, record.rule) == ("refused", "older_run")
        assert champion_run(store) == "b"
        assert champion.list_versions(store, MODEL) == [1]

    def test_two_attempts_at_one_run_move_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        commit, rivals = commit_run(store, "a"), ["the other attempt"]
        other = open_store(StoreSection(uri=store.uri), environ={})

        def act(point: str) -> None:
            if point == f"before create {champion_key(MODEL, version=1)}" and rivals:
                rivals.pop()
                gate(other).settle(commit)

        monkeypatch.setattr("job.store.backend.on_point", act)
        record = gate(store).settle(commit)
        assert (record.verdict, record.version) == ("promoted", 1)
        assert champion.list_versions(store, MODEL) == [1]

    def test_rival_attempt_with_other_rules_does_not_unsay_a_promotion(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        commit, rivals = commit_run(store, "a"), ["the other attempt"]
        other = open_store(StoreSection(uri=store.uri), environ={})

        def act(point: str) -> None:
            if point == f"before create {champion_key(MODEL, version=1)}" and rivals:
                rivals.pop()
                assert gate(other, min_accuracy=0.99).settle(commit).verdict == "refused"

        monkeypatch.setattr("job.store.backend.on_point", act)
        assert gate(store).settle(commit).verdict == "promoted"
        assert "gate.other_decision" in [record.getMessage() for record in caplog.records]
        assert read_gate(store, "a") == gate(store).settle(commit)

    def test_promotion_is_corrected_when_its_attempt_died_before(self, store: Store) -> None:
        commit = commit_run(store, "a")
        assert gate(store, min_accuracy=0.99).settle(commit).verdict == "refused"
        to = commit.model(created=read.created_at(store, commit))
        decision = gate(store).assess(commit, None)
        champion.move(store, MODEL, before=None, to=to, by="gate", who="rival", why="", gate=decision)
        assert gate(store).settle(commit) == decision
        assert read_gate(store, "a") == decision


class TestDamage:
    def test_damaged_champion_is_an_error_and_not_a_decision(self, store: Store) -> None:
        settle(store, "a")
        store.delete("runs/a/attempts/a/predictions.safetensors")
        with pytest.raises(IntegrityError, match=r"predictions\.safetensors is named by the COMMIT and does not exist"):
            settle(store, "b")
        assert read_gate(store, "b") is None
        assert champion_run(store) == "a"

    @pytest.mark.parametrize("damage", [{"verdict": None}, {"numbers": [1]}])
    def test_damaged_decision_is_an_integrity_error(self, damage: dict[str, Any], store: Store) -> None:
        settle(store, "a")
        record = json.loads(store.get(gate_key("a")) or b"") | damage
        record = {name: value for name, value in record.items() if value is not None or name == "compared_with"}
        store.put(gate_key("a"), json.dumps(record).encode())
        with pytest.raises(IntegrityError, match=r"^store: runs/a/gate\.json is no decision of the gate: it"):
            read_gate(store, "a")

    def test_run_that_retention_removed_while_it_slept_is_told_so(self, store: Store) -> None:
        settle(store, "a")
        commit = commit_run(store, "b")
        remove_runs(store, ["b"], keep_versions=10)
        with pytest.raises(ConflictError, match=r"^run b was committed, and removed by retention at 20"):
            gate(store).settle(commit)
        assert json.loads(store.get("runs/b/COMMIT.json") or b"")["by"] == "retention"


@pytest.mark.parametrize(
    ("num_examples", "changes", "smallest"),
    [
        (360, {}, 0.013889),
        (360, {"significance": 0.01}, 0.019444),
        (360, {"significance": 0.0}, 0.002778),
        (360, {"metric": "top_3_accuracy"}, 0.013889),
        (360, {"max_accuracy_drop": 0.014}, None),
        (360, {"metric": "auc"}, None),
        (360, {"enabled": False}, None),
        (10_000, {}, None),
        (10_000, {"max_accuracy_drop": 0.0}, 0.0005),
        (0, {}, None),
    ],
)
def test_a_drop_that_the_test_split_cannot_show_is_named_before_the_training(
    num_examples: int, changes: dict[str, Any], smallest: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_resolution(PromotionSection(**changes), num_examples=num_examples)
    told = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "gate.coarse"]
    assert [(each["examples"], each["smallest_loss"]) for each in told] == (
        [(num_examples, smallest)] if smallest else []
    )
    if told:
        assert f"{smallest:.4f} below the champion's" in told[0]["reason"]
