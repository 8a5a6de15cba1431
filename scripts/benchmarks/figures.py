"""Medians and spreads of what the programs printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import Sample

# Relative; the programs sum in different orders, in float32.
LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure over all rounds."""

    median: float
    minimum: float
    maximum: float


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest."""
    return Spread(median=statistics.median(values), minimum=min(values), maximum=max(values))


def warm_epoch_seconds(sample: Sample) -> float:
    """Median training time of an epoch of one process, without the first, which traces or compiles."""
    return statistics.median([float(event["seconds"]) for event in sample.of("epoch.end")[1:]])


def epoch_losses(sample: Sample) -> list[float]:
    """Mean training loss of every epoch."""
    return [float(event["loss"]) for event in sample.of("epoch.end")]


def final_test_accuracy(sample: Sample) -> float:
    """Test accuracy after the last epoch."""
    return float(sample.of("epoch.end")[-1]["test_accuracy"])


def largest_difference(columns: Sequence[Sequence[float]]) -> float:
    """Largest relative difference between programs in any epoch."""
    rows: list[tuple[float, ...]] = list(zip(*columns, strict=True))
    return max((max(row) - min(row)) / min(row) for row in rows)


def phase_medians(samples: Sequence[Sample]) -> dict[str, float]:
    """Median seconds of each phase that the job reports, and of the rest of its process."""
    phases: list[dict[str, float]] = [sample.of("run.end")[-1]["phases"] for sample in samples]
    medians = {name: statistics.median(phase[name] for phase in phases) for name in phases[0]}
    rest = [sample.wall_seconds - sum(phase.values()) for sample, phase in zip(samples, phases, strict=True)]
    return medians | {"outside all phases": statistics.median(rest)}
