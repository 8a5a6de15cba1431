"""Predictions on the test split and what they say: loss, accuracy, per class, confusion, wrong examples.

The scores are numpy on stored probabilities, so that they can be made again without the model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.datasets.dataset import Images, Labels
from job.errors import TrainingError
from job.training import pipeline

Probabilities = NDArray[np.float32]

MAX_BATCH_EXAMPLES = 1000
"""All of MNIST's test split at once would cost 150 MB more memory and is not faster."""
SMALL_BATCH_EXAMPLES = 32
"""Without gradients so many take less memory than a training step of a fraction of them."""
_SMALLEST_PROBABILITY = 1e-7  # as in Keras
_MAX_WRONG_EXAMPLES = 200
_MAX_CONFUSION_CLASSES = 100
"""Of more classes metrics.json holds the counts of those with the most mistakes; predictions.safetensors has everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """How well one class is told apart. Precision is 0 when it was never predicted."""

    name: str
    num_examples: int
    recall: float
    precision: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores on the test split.

    Attributes:
        loss: mean categorical crossentropy in nats.
        accuracy: share of examples classified correctly, 0..1.
        confusion: rows are true classes, columns predicted ones; counts. Of more than 100 classes the 100 with the most mistakes.
        wrong: the confidently wrong examples first, at most 200: position, label, prediction, its probability.
        confusion_classes: labels of the rows of `confusion`; None when it has all classes.
        metrics: more of them, by name.
    """

    loss: float
    accuracy: float
    num_examples: int
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    wrong: tuple[dict[str, Any], ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    confusion_classes: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for metrics.json; without `metrics` and `confusion_classes` when there are none."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != {}}


def choose_batch_examples(*, batch_size_per_replica: int) -> int:
    """How many images a model of unknown size takes at a time: what a training step takes fits into memory."""
    return min(MAX_BATCH_EXAMPLES, max(SMALL_BATCH_EXAMPLES, batch_size_per_replica))


class Predictor:
    """Runs the model on raw images, preprocessing included, exactly as the export does."""

    def __init__(
        self,
        model: Any,
        *,
        input_shape: tuple[int, ...],
        batch_examples: int,
        is_filled_up: bool,
        on_batch: Callable[[], None],
    ) -> None:
        """`model` may be mirrored over several devices; the first one computes.

        Args:
            batch_examples: images at a time.
            is_filled_up: whether the last batch is made as large as the others. That costs time, but the last bits of a
                matrix product may depend on the number of its rows.
            on_batch: is called after each batch.
        """
        import tensorflow as tf

        def predict(images: Any) -> Any:
            probabilities = model(preprocess(images, input_shape=input_shape), training=False)
            return tf.cast(probabilities, tf.float32)

        self._predict = tf.function(predict, reduce_retracing=True)
        self._batch_examples, self._is_filled_up, self._on_batch = batch_examples, is_filled_up, on_batch

    def __call__(self, images: Images) -> Probabilities:
        """Probabilities float32 [N, C] of images [N, ...]."""
        parts = []
        for batch in make_batches(images, batch_examples=self._batch_examples):
            given = batch
            if self._is_filled_up and len(batch) < self._batch_examples:
                given = np.zeros((self._batch_examples, *images.shape[1:]), images.dtype)
                given[: len(batch)] = batch
            parts.append(self._predict(given).numpy()[: len(batch)])
            self._on_batch()
        return np.concatenate(parts)


def make_batches(images: Images, *, batch_examples: int) -> Iterator[Images]:
    """Consecutive images, `batch_examples` at a time; the last batch holds the rest."""
    for start in range(0, len(images), batch_examples):
        yield images[start : start + batch_examples]


def preprocess(images: Any, *, input_shape: tuple[int, ...]) -> Any:
    """Images [N, ...] -> float32 [N, *input_shape], by the same arithmetic as in training."""
    import tensorflow as tf

    return pipeline.preprocess(tf.reshape(images, (-1, *input_shape)))


def loss_and_accuracy(probabilities: Probabilities, labels: Labels) -> tuple[float, float]:
    """Mean categorical crossentropy in nats and the share of correct predictions.

    Raises:
        TrainingError: a probability is not finite: the weights are of no use.
    """
    if not np.isfinite(probabilities).all():
        raise TrainingError("the model's probabilities are not finite; nothing is exported; lower the learning rate")
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = -np.log(np.clip(of_label, _SMALLEST_PROBABILITY, 1)).mean()
    return float(loss), float((probabilities.argmax(1) == labels).mean())


def score(
    probabilities: Probabilities,
    labels: Labels,
    *,
    class_names: tuple[str, ...],
    metrics: Mapping[str, float] = MappingProxyType({}),
) -> Scores:
    """All scores from probabilities [N, C] and labels [N]; `metrics` are what was measured beside them."""
    loss, accuracy = loss_and_accuracy(probabilities, labels)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    shown = most_confused(confusion, most=_MAX_CONFUSION_CLASSES)
    return Scores(
        loss=loss,
        accuracy=accuracy,
        num_examples=len(labels),
        classes=tuple(_class_score(confusion, index, name=name) for index, name in enumerate(class_names)),
        confusion=tuple(tuple(row) for row in confusion[np.ix_(shown, shown)].tolist()),
        wrong=_wrong_examples(probabilities, labels, predicted),
        metrics=dict(metrics),
        confusion_classes=tuple(shown.tolist()) if len(shown) < len(class_names) else None,
    )


def most_confused(confusion: NDArray[np.int64], *, most: int) -> NDArray[np.int64]:
    """Rows of all classes, or of the `most` with the most mistakes in their row and column, ascending."""
    mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def _class_score(confusion: NDArray[np.int64], index: int, *, name: str) -> ClassScore:
    correct, num_true, num_predicted = confusion[index, index], confusion[index].sum(), confusion[:, index].sum()
    return ClassScore(
        name=name,
        num_examples=int(num_true),
        recall=float(correct / num_true) if num_true else 0.0,
        precision=float(correct / num_predicted) if num_predicted else 0.0,
    )


def _wrong_examples(
    probabilities: Probabilities, labels: Labels, predicted: NDArray[np.int64]
) -> tuple[dict[str, Any], ...]:
    positions = np.flatnonzero(predicted != labels)
    confidence = probabilities[positions, predicted[positions]]
    most_confident = positions[np.argsort(-confidence, kind="stable")][:_MAX_WRONG_EXAMPLES]
    return tuple(
        {
            "position": int(position),
            "label": int(labels[position]),
            "predicted": int(predicted[position]),
            "probability": round(float(probabilities[position, predicted[position]]), 6),
        }
        for position in most_confident
    )
