"""What a run counts over its attempts, on a clock that the tests move: sums are exact, and no test waits."""

import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from job import clock
from job.config import TrainSection
from job.observe import phases as phases_module
from job.observe.phases import Phases
from job.runs.goodput import Ledger
from job.training.loop import Split, Training
from job.training.steps import ChunkResult

CPU: dict[str, Any] = {"machine": "x86_64", "instruction_sets": ["avx2"], "onednn_max_cpu_isa": None}
OTHER_CPU = CPU | {"onednn_max_cpu_isa": "AVX2"}
INTERVAL, TOTAL_STEPS = 30.0, 900
PROCESS_SECONDS, DATA_SECONDS, RESTORE_SECONDS = 0.5, 2.0, 1.0
OWN_SECONDS = PROCESS_SECONDS + DATA_SECONDS + RESTORE_SECONDS
"""From the start of a process to `Ledger.start`."""


class World:
    """A clock, and one run on it: attempts come and go, the newest checkpoint stays."""

    def __init__(self) -> None:
        self.now = 2.0**30
        self.step_seconds = self.paused_seconds = 0.0
        self.registered: list[float] = []
        self.meta: dict[str, Any] | None = None
        self.step = 0

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds

    def begin(
        self,
        *,
        computed_on: Mapping[str, Any] = CPU,
        interval_seconds: float = INTERVAL,
        before_restore: Callable[[], object] = lambda: None,
    ) -> Ledger:
        """A new process up to its first step: start of the interpreter, data, attempt.json, restore."""
        self.pass_seconds(PROCESS_SECONDS)
        phases = Phases()
        with phases("data"):
            self.pass_seconds(DATA_SECONDS)
        self.registered.append(self.now)
        ledger = Ledger(
            phases=phases,
            attempt=f"attempt-{len(self.registered)}",
            num_attempts=len(self.registered),
            computed_on=computed_on,
            first_started_seconds=min(self.registered),
        )
        before_restore()
        with phases("restore"):
            self.pass_seconds(RESTORE_SECONDS)
            ledger.start(self.meta, step=self.step, total_steps=TOTAL_STEPS, interval_seconds=interval_seconds)
        return ledger

    def train(self, ledger: Ledger, seconds: float) -> None:
        with ledger.phases("train"):
            self.pass_seconds(seconds)

    def save(self, ledger: Ledger, *, step: int, is_end: bool = False) -> None:
        """A checkpoint, through the JSON that it is kept in."""
        ledger.num_interruptions += 1 if is_end else 0
        self.meta, self.step = json.loads(json.dumps(ledger.to_meta(is_end=is_end))), step


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    # A calendar that is far from the monotonic clock: whoever mixes the two is wrong by days.
    source = SimpleNamespace(
        now=lambda: world.now + world.step_seconds,
        monotonic=lambda: world.now - world.paused_seconds - 2.0**20,
        paused_seconds=lambda: world.paused_seconds,
    )
    monkeypatch.setattr(clock, "source", source)
    monkeypatch.setattr(phases_module, "seconds_since_process_start", lambda: PROCESS_SECONDS)
    return world


def check_sum(ledger: Ledger, *, abs_seconds: float = 0.01, is_calendar_wrong: bool = False) -> dict[str, Any]:
    """The goodput, once its seconds are found to add up to the wall time; rounding to 1 ms is all that may differ."""
    goodput = ledger.goodput()
    assert sum(goodput["seconds"].values()) == pytest.approx(goodput["wall_seconds"], abs=abs_seconds)
    assert min(goodput["seconds"].values()) >= 0
    assert goodput["down_seconds"] >= 0
    assert 0 <= goodput["ratio"] <= 1
    meta = ledger.to_meta(is_end=False)
    by_calendar = clock.now() - ledger.first_started_seconds - meta["down_seconds"] + meta["overlap_seconds"]
    if not is_calendar_wrong:
        assert goodput["wall_seconds"] == pytest.approx(by_calendar, abs=abs_seconds)
    return goodput


class TestOneAttempt:
    def test_every_second_is_in_one_category(self, world: World) -> None:
        ledger = world.begin()
        for number, phase in enumerate(
            ("store", "build", "compile", "train", "evaluate", "checkpoint", "export", "publish", "clean_up")
        ):
            with ledger.phases(phase):
                world.pass_seconds(2.0**number)
        world.pass_seconds(1024.0)  # between phases: start_up
        ledger.first_step_seconds = 12.5
        assert check_sum(ledger) == {
            "ratio": round(8 / (1535 + OWN_SECONDS), 4),
            "wall_seconds": 1535 + OWN_SECONDS,
            "seconds": {
                "start_up": PROCESS_SECONDS + RESTORE_SECONDS + 1 + 2 + 1024,
                "data": DATA_SECONDS,
                "compile": 4.0,
                "train": 8.0,
                "evaluate": 16.0,
                "checkpoint": 32.0,
                "publish": 64.0 + 128.0 + 256.0,
                "lost": 0.0,
            },
            "down_seconds": 0.0,
            "first_step_seconds": 12.5,
        }

    def test_reading_twice_counts_nothing_twice(self, world: World) -> None:
        ledger = world.begin()
        world.train(ledger, 5.0)
        assert ledger.goodput() == ledger.goodput()
        assert ledger.to_meta(is_end=False) == ledger.to_meta(is_end=False)


class TestNextAttempt:
    def test_run_without_a_checkpoint_begins_with_what_was_lost(self, world: World) -> None:
        world.train(world.begin(), 20.0)  # killed
        ledger = world.begin()
        goodput = check_sum(ledger)
        # From the first attempt's attempt.json on: what was before it left no mark.
        assert goodput["seconds"]["lost"] == RESTORE_SECONDS + 20.0
        assert (goodput["down_seconds"], goodput["ratio"]) == (0.0, 0.0)
        assert ledger.chain == [{"attempt": "attempt-2", "from_step": 0, "computed_on": CPU}]

    def test_interruption_loses_nothing_and_the_pause_is_down_time(self, world: World) -> None:
        first = world.begin()
        world.train(first, 100.0)
        world.save(first, step=45, is_end=True)
        world.pass_seconds(3600.0)
        second = world.begin()
        world.train(second, 10.0)
        goodput = check_sum(second)
        assert goodput["wall_seconds"] == 2 * OWN_SECONDS + 110.0
        assert goodput["down_seconds"] == 3600.0
        assert (goodput["seconds"]["lost"], goodput["seconds"]["train"]) == (0.0, 110.0)
        assert goodput["ratio"] == round(110 / 117, 4)
        assert (second.num_attempts, second.num_interruptions) == (2, 1)

    def test_kill_loses_the_time_since_the_checkpoint(self, world: World) -> None:
        first = world.begin()
        world.train(first, 100.0)
        world.save(first, step=45)
        world.train(first, 12.0)  # killed
        second = world.begin()
        goodput = check_sum(second)
        assert goodput["seconds"]["lost"] == 12.0
        assert goodput["seconds"]["train"] == 100.0  # and not what has to be done again
        assert goodput["down_seconds"] == 0.0
        assert second.num_interruptions == 0

    def test_loss_is_bounded_and_the_rest_is_down_time(self, world: World) -> None:
        first = world.begin()
        world.train(first, 100.0)
        world.save(first, step=45)
        world.train(first, 12.0)  # killed, and the node was away for a day
        world.pass_seconds(86400.0)
        goodput = check_sum(world.begin())
        assert goodput["seconds"]["lost"] == INTERVAL + OWN_SECONDS
        assert goodput["down_seconds"] == 86412.0 - INTERVAL - OWN_SECONDS
        assert goodput["wall_seconds"] == 100.0 + INTERVAL + 3 * OWN_SECONDS

    @pytest.mark.parametrize(("is_end", "num_dead"), [(False, 3), (True, 2)], ids=["killed", "interrupted"])
    def test_attempts_that_died_in_between_are_lost_too(self, is_end: bool, num_dead: int, world: World) -> None:
        first = world.begin()
        world.train(first, 100.0)
        world.save(first, step=45, is_end=is_end)
        for _ in range(2):
            world.begin()  # killed before its first checkpoint
        world.pass_seconds(86400.0)
        fourth = world.begin()
        goodput = check_sum(fourth)
        assert goodput["seconds"]["lost"] == num_dead * (INTERVAL + OWN_SECONDS)
        assert goodput["down_seconds"] == 86400.0 + 2 * OWN_SECONDS - num_dead * (INTERVAL + OWN_SECONDS)
        assert (fourth.num_attempts, fourth.num_interruptions) == (4, int(is_end))

    def test_two_attempts_at_once_are_counted_twice(self, world: World) -> None:
        first = world.begin()
        with first.phases("train"):
            world.pass_seconds(100.0)
            second = world.begin(before_restore=lambda: world.save(first, step=45))
        goodput = check_sum(second)
        both = PROCESS_SECONDS + DATA_SECONDS  # of the second, in which the first trained
        assert goodput["seconds"]["train"] == 100.0 + both
        assert goodput["wall_seconds"] == 100.0 + both + 2 * OWN_SECONDS
        assert (goodput["seconds"]["lost"], goodput["down_seconds"]) == (0.0, 0.0)
        assert second.to_meta(is_end=False)["overlap_seconds"] == both

    def test_store_whose_clock_is_ahead_makes_no_time(self, world: World) -> None:
        world.registered.append(world.now + 600.0)
        goodput = check_sum(world.begin())
        assert goodput["wall_seconds"] == OWN_SECONDS
        assert goodput["seconds"]["lost"] == goodput["down_seconds"] == 0.0

    @pytest.mark.parametrize("seed", range(30))
    def test_seconds_add_up_over_any_mixture_of_ends(self, seed: int, world: World) -> None:
        choices = random.Random(seed)
        started, begun, trained = world.now, 0.0, 0.0
        for _ in range(choices.randint(1, 12)):
            ledger = world.begin(interval_seconds=choices.choice((1.0, 30.0, 600.0)))
            check_sum(ledger, abs_seconds=0.02)
            for _ in range(choices.randint(0, 3)):
                world.train(ledger, choices.uniform(0.0, 50.0))
                world.save(ledger, step=world.step + 1)
                trained = ledger.goodput()["seconds"]["train"]
            world.train(ledger, choices.uniform(0.0, 50.0))
            if choices.random() < 0.5:
                world.save(ledger, step=world.step + 1, is_end=True)
                trained = ledger.goodput()["seconds"]["train"]
            begun = begun or (started if world.meta else world.registered[0])
            world.pass_seconds(choices.choice((0.0, 1.0, 1000.0)))
        last = world.begin()
        world.train(last, 1.0)
        goodput = check_sum(last, abs_seconds=0.02)
        assert goodput["seconds"]["train"] == pytest.approx(trained + 1.0, abs=0.02)  # each second of a kept step, once
        # The calendar holds no other time. It begins with attempt.json where the first attempt left nothing else.
        assert goodput["wall_seconds"] + goodput["down_seconds"] == pytest.approx(world.now - begun, abs=0.01)


DAY = 86400.0


class TestTime:
    def test_a_pause_is_no_productive_time(self, world: World) -> None:
        ledger = world.begin()
        with ledger.phases("train"):
            world.pass_seconds(10.0)
            world.pass_seconds(500.0)
            world.paused_seconds += 500.0
        goodput = check_sum(ledger)
        assert (goodput["seconds"]["train"], goodput["seconds"]["paused"]) == (10.0, 500.0)
        assert goodput["wall_seconds"] == 510.0 + OWN_SECONDS

    @pytest.mark.parametrize("step_seconds", [-100 * 365 * DAY, -DAY, -3600.0, -0.5, 0.5, 3600.0, DAY, 100 * 365 * DAY])
    @pytest.mark.parametrize("when", ["before training", "in training", "between two attempts"])
    def test_a_step_of_the_calendar_changes_no_ratio(self, step_seconds: float, when: str, world: World) -> None:
        def step(at: str) -> None:
            world.step_seconds += step_seconds if at == when else 0.0

        first = world.begin(before_restore=lambda: step("before training"))
        world.train(first, 50.0)
        step("in training")
        world.train(first, 50.0)
        goodput = check_sum(first, is_calendar_wrong=True)
        if when != "before training":
            assert goodput["ratio"] == round(100.0 / (100.0 + OWN_SECONDS), 4)
        world.save(first, step=45, is_end=True)
        step("between two attempts")
        second = world.begin()
        world.train(second, 100.0)
        goodput = check_sum(second, is_calendar_wrong=True)
        assert goodput["seconds"]["train"] == 200.0
        assert goodput["seconds"]["lost"] <= INTERVAL + OWN_SECONDS


class TestChain:
    def test_chain_names_the_attempts_whose_steps_were_kept(self, world: World) -> None:
        world.save(world.begin(), step=45)
        world.begin()  # died without a checkpoint: nothing of it is in the weights
        third = world.begin()
        world.save(third, step=90)
        fourth = world.begin()
        assert [(link["attempt"], link["from_step"]) for link in fourth.chain] == [
            ("attempt-1", 0),
            ("attempt-3", 45),
            ("attempt-4", 90),
        ]
        assert len(third.chain) == 2
        assert fourth.is_bit_identical

    def test_attempt_with_no_step_left_to_make_does_not_matter(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.save(world.begin(), step=TOTAL_STEPS)
        last = world.begin(computed_on=OTHER_CPU)  # evaluates and exports what the first one trained
        assert [link["attempt"] for link in last.chain] == ["attempt-1"]
        assert last.is_bit_identical
        assert caplog.records == []

    def test_other_hardware_is_warned_of_and_never_forgotten(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="job"):
            world.save(world.begin(), step=45)
            assert caplog.records == []
            second = world.begin(computed_on=OTHER_CPU)
            [record] = caplog.records
            world.save(second, step=90)
            third = world.begin(computed_on=OTHER_CPU)  # as before: no second warning
            assert len(caplog.records) == 1
        assert record.getMessage() == "run.not_bit_identical"
        assert vars(record)["fields"]["changed"] == {"onednn_max_cpu_isa": [None, "AVX2"]}
        assert not second.is_bit_identical
        assert not third.is_bit_identical
        assert [link["computed_on"] for link in third.chain] == [CPU, OTHER_CPU, OTHER_CPU]

    def test_attempt_on_other_hardware_that_kept_no_step_does_not_matter(self, world: World) -> None:
        world.save(world.begin(), step=45)
        assert not world.begin(computed_on=OTHER_CPU).is_bit_identical  # died without a checkpoint
        assert world.begin().is_bit_identical

    def test_meta_is_plain_json_and_the_next_attempt_leaves_it_alone(self, world: World) -> None:
        world.save(world.begin(), step=45)
        before = json.dumps(world.meta)
        second = world.begin(computed_on=OTHER_CPU)
        world.train(second, 7.0)
        assert json.dumps(world.meta) == before
        assert world.meta is not None
        assert second.to_meta(is_end=True).keys() == world.meta.keys()
        assert second.to_meta(is_end=True)["is_end"] is True


class NoSteps:
    """Steps that nobody takes."""

    def run(self, *, start_step: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[ChunkResult]:
        raise NotImplementedError

    def state(self) -> dict[str, NDArray[Any]]:
        return {}

    def common_state(self) -> dict[str, NDArray[Any]]:
        return {}

    def model_state(self) -> dict[str, NDArray[Any]]:
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        raise NotImplementedError

    def load_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        raise NotImplementedError


def make_training(*, num_examples: int, epochs: int) -> Training:
    return Training(
        NoSteps(),
        settings=TrainSection(epochs=epochs, global_batch_size=16),
        num_examples=num_examples,
        test=Split(predict=lambda: np.zeros((0, 10), np.float32), labels=np.zeros(0, np.int64)),
    )


@pytest.mark.parametrize(
    ("step", "examples", "epochs"),
    [
        (0, 0, 0),
        (1, 16, 0),
        (4, 64, 0),
        (5, 70, 1),  # the last batch of an epoch holds the remaining 6
        (6, 86, 1),
        (9, 134, 1),
        (10, 140, 2),
        (15, 210, 3),
    ],
)
def test_counters_follow_from_the_step(step: int, examples: int, epochs: int, world: World) -> None:
    training = make_training(num_examples=70, epochs=3)
    ledger = world.begin()
    ledger.num_attempts, ledger.num_interruptions = 4, 2
    assert (training.steps_per_epoch, training.total_steps) == (5, 15)
    assert training.counters(step, ledger=ledger) == {
        "steps": step,
        "examples": examples,
        "epochs": epochs,
        "attempts": 4,
        "interruptions": 2,
    }


def test_counters_without_a_remainder(world: World) -> None:
    training = make_training(num_examples=64, epochs=2)
    ledger = world.begin()
    assert [training.counters(step, ledger=ledger)["examples"] for step in range(9)] == [16 * step for step in range(9)]
