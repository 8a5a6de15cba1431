"""What a run counts over all of its attempts: where the time went, interruptions, and which attempts made its steps.

It is kept in the checkpoints: only work up to the last checkpoint counts, and what an attempt did after it counts as lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from job import clock
from job.logs import warn
from job.observe.phases import PROCESS, START_UP, Phases

LOST, PRODUCTIVE = "lost", "train"

_MAX_READS, _READ_SECONDS = 100, 0.001

_CATEGORY_OF_PHASE = {
    PROCESS: "start_up",
    START_UP: "start_up",
    "store": "start_up",
    "build": "start_up",
    "restore": "start_up",
    "export": "publish",
    "clean_up": "publish",
}
"""Phases under another name in goodput; data, compile, train, evaluate, checkpoint and publish keep theirs."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """The counters of a run, as seen by one attempt.

    Attributes:
        phases: this attempt's own clock.
        attempt: its id.
        num_attempts: attempts of the run that came as far as `attempt.json`, this one included.
        computed_on: what decides the bits of its steps, from `lineage.bits_depend_on`.
        first_started_seconds: when the run's first attempt started, in seconds since the epoch.
        earlier_seconds: by category, of the attempts before.
        down_seconds: time in which no attempt ran.
        overlap_seconds: time in which two attempts ran at once; the calendar counts it once.
        num_interruptions: SIGTERM, SIGINT or SIGHUP during training, after which the state was saved.
        chain: the attempts whose steps are in the weights, each with the step it took up.
        is_bit_identical: all steps were computed on equal hardware and versions.
        are_workers_alike: the workers of this attempt have equal hardware and versions.
    """

    phases: Phases
    attempt: str
    num_attempts: int
    computed_on: Mapping[str, Any]
    first_started_seconds: float
    earlier_seconds: dict[str, float] = field(default_factory=dict)
    down_seconds: float = 0.0
    overlap_seconds: float = 0.0
    num_interruptions: int = 0
    chain: list[dict[str, Any]] = field(default_factory=list)
    is_bit_identical: bool = True
    are_workers_alike: bool = True
    first_step_seconds: float | None = None
    """From the start of this process to its first new step."""

    def start(self, meta: Mapping[str, Any] | None, *, step: int, total_steps: int, interval_seconds: float) -> None:
        """Go on with the counters of a checkpoint, or begin at zero.

        Args:
            meta: what `to_meta` returned for the checkpoint that was restored.
            step: where it was made; an attempt that finds no step left to make does not join the chain.
            interval_seconds: between checkpoints. A killed attempt lived at most its start-up and one interval longer than its
                last checkpoint says.
        """
        now, own_phases = self._read_clocks()
        own_seconds = sum(own_phases.values())
        last_seconds, num_dead = min(self.first_started_seconds, now - own_seconds), self.num_attempts - 1
        if meta is None:
            self.first_started_seconds = last_seconds
        else:
            self.first_started_seconds = meta["first_started_seconds"]
            self.earlier_seconds = dict(meta["seconds"])
            self.down_seconds, self.overlap_seconds = meta["down_seconds"], meta["overlap_seconds"]
            self.num_interruptions = meta["interruptions"]
            self.chain = [dict(link) for link in meta["chain"]]
            self.is_bit_identical = meta["is_bit_identical"]
            last_seconds = meta["saved_seconds"]
            num_dead = self.num_attempts - meta["attempts"] - (1 if meta["is_end"] else 0)
        gap_seconds = now - own_seconds - last_seconds
        self.overlap_seconds += max(0.0, -gap_seconds)
        gap_seconds = max(0.0, gap_seconds)
        # When a killed attempt died is not known; at most so long after its last sign of life.
        lost_seconds = min(gap_seconds, max(0, num_dead) * (interval_seconds + own_seconds))
        self.earlier_seconds[LOST] = self.earlier_seconds.get(LOST, 0.0) + lost_seconds
        self.down_seconds += gap_seconds - lost_seconds
        if step < total_steps:
            self._join_chain(step)

    def _join_chain(self, step: int) -> None:
        self.is_bit_identical &= self.are_workers_alike
        if self.chain and self.chain[-1]["computed_on"] != self.computed_on:
            before = self.chain[-1]["computed_on"]
            self.is_bit_identical = False
            warn(
                "run.not_bit_identical",
                changed={
                    name: [before.get(name), now] for name, now in self.computed_on.items() if before.get(name) != now
                },
                reason="the steps from here on may end in other bits than those of an undisturbed run; recorded in the COMMIT",
            )
        self.chain.append({"attempt": self.attempt, "from_step": step, "computed_on": dict(self.computed_on)})

    def to_meta(self, *, is_end: bool) -> dict[str, Any]:
        """What the next attempt has to know, as plain JSON; `is_end`: this attempt makes no steps after this checkpoint."""
        now, own_phases = self._read_clocks()
        return {
            "first_started_seconds": self.first_started_seconds,
            "saved_seconds": now,
            "seconds": self._by_category(own_phases),
            "down_seconds": self.down_seconds,
            "overlap_seconds": self.overlap_seconds,
            "attempts": self.num_attempts,
            "interruptions": self.num_interruptions,
            "chain": self.chain,
            "is_bit_identical": self.is_bit_identical,
            "is_end": is_end,
        }

    def goodput(self) -> dict[str, Any]:
        """Productive time over the wall time of all attempts so far, and where the rest went.

        `seconds` are measured phase by phase, and `wall_seconds` is their sum: a step of the calendar changes neither. Where the
        calendar makes no step, now - first start - down_seconds + overlap_seconds is the same; tests hold the two to agree.
        """
        seconds = self._by_category(self.phases.seconds)
        wall_seconds = sum(seconds.values())
        return {
            "ratio": round(seconds.get(PRODUCTIVE, 0.0) / wall_seconds, 4) if wall_seconds > 0 else 0.0,
            "wall_seconds": round(wall_seconds, 3),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "down_seconds": round(self.down_seconds, 3),
            "first_step_seconds": self.first_step_seconds,
        }

    def _read_clocks(self) -> tuple[float, dict[str, float]]:
        """Calendar and phases at one instant: read again when more than 1 ms passed between the two."""
        for _ in range(_MAX_READS):
            before = clock.monotonic()
            phases, now = self.phases.seconds, clock.now()
            if clock.monotonic() - before < _READ_SECONDS:
                break
        return now, phases

    def _by_category(self, phases: Mapping[str, float]) -> dict[str, float]:
        seconds = dict(self.earlier_seconds)
        for phase, value in phases.items():
            category = category_of(phase)
            seconds[category] = seconds.get(category, 0.0) + value
        return seconds


def category_of(phase: str) -> str:
    """Under which name goodput counts the time of a phase."""
    return _CATEGORY_OF_PHASE.get(phase, phase)
