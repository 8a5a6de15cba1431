"""What the order of an attempt and the thing that is trained say to each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from job.config import Config
from job.observe.phases import Phases
from job.runs.lineage import Device
from job.runs.read import DatasetIdentity
from job.training.evaluation import Probabilities, Scores
from job.training.loop import Training
from job.training.workers import Exchange, Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is known before anything is built.

    Attributes:
        inputs: what decides the result.
        device: what will compute the steps.
        exchange: how the workers talk to each other.
        weight_bytes: of the model's weights: the result takes at least so much.
        num_test_examples: of the test split as it is used; 0 when nobody counted.
    """

    inputs: Mapping[str, Any]
    dataset: DatasetIdentity
    device: Device
    exchange: Exchange
    weight_bytes: int = 0
    num_test_examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What training ended in.

    Attributes:
        files: to publish, name below the attempt's folder -> content.
        weights_digest: over the values of all weights.
        scores: on the test split.
    """

    files: Mapping[str, bytes]
    weights_digest: str
    scores: Scores


class Workload(Protocol):
    """What a run trains; called in this order."""

    def prepare(
        self,
        config: Config,
        *,
        run_id: str,
        phases: Phases,
        workers: Workers,
        look: Callable[[], None],
        recorded_compile: str | None = None,
    ) -> Prepared:
        """Bring the workers together, and devices and data; refuses what cannot work before anything is written.

        Args:
            workers: to train with; this one alone when nothing is left to train.
            look: is called now and then while this worker waits for others; may raise to leave.
            recorded_compile: how the standing run compiles its steps; `train.compile=auto` follows it.
        """

    def build(self) -> Training:
        """Build everything; nothing is trained yet."""

    def finish(self, training: Training, *, phases: Phases) -> Results:
        """Evaluate and export what was trained."""

    def predict_with(self, files: Mapping[str, bytes], *, weights_digest: str) -> Probabilities:
        """What another run's published SavedModel says to this run's test images; needs `prepare` alone.

        Args:
            files: name below the model's folder -> content.
            weights_digest: that the COMMIT of that run records.

        Raises:
            IntegrityError: the model cannot be used, or has other weights.
        """
