"""Predictions on the test split and what they say: loss, accuracy, per class, confusion, wrong examples.

The scores are numpy on stored probabilities, so that they can be made again without the model.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.datasets.dataset import Images, Labels
from job.errors import TrainingError

Probabilities = NDArray[np.float32]

_BATCH_EXAMPLES = 1000
"""All of MNIST's test split at once would cost 150 MB more memory and is not faster."""
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
    """

    loss: float
    accuracy: float
    num_examples: int
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    wrong: tuple[dict[str, Any], ...]
    confusion_classes: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for metrics.json."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Predictor:
    """Runs the model on raw images, preprocessing included, exactly as the export does."""

    def __init__(self, model: Any, *, input_shape: tuple[int, ...]) -> None:
        import tensorflow as tf

        def predict(images: Any) -> Any:
            return model(preprocess(images, input_shape=input_shape), training=False)

        self._predict = tf.function(predict)

    def __call__(self, images: Images) -> Probabilities:
        """Probabilities float32 [N, C] of uint8 images [N, ...]."""
        padded = np.zeros((_BATCH_EXAMPLES, *images.shape[1:]), np.uint8)
        parts = []
        for start in range(0, len(images), _BATCH_EXAMPLES):
            batch = images[start : start + _BATCH_EXAMPLES]
            padded[: len(batch)] = batch  # one shape, one trace
            parts.append(self._predict(padded).numpy()[: len(batch)])
        return np.concatenate(parts).astype(np.float32)


def preprocess(images: Any, *, input_shape: tuple[int, ...]) -> Any:
    """uint8 [N, ...] in 0..255 -> float32 [N, *input_shape] in 0..1; the same arithmetic as the training pipeline."""
    import tensorflow as tf

    return tf.cast(tf.reshape(images, (-1, *input_shape)), tf.float32) / 255.0


def loss_and_accuracy(probabilities: Probabilities, labels: Labels) -> tuple[float, float]:
    """Mean categorical crossentropy in nats and the share of correct predictions.

    Raises:
        TrainingError: a probability is not finite: the weights are of no use.
    """
    if not np.isfinite(probabilities).all():
        raise TrainingError("the model's probabilities are not finite; nothing is exported; lower train.learning_rate")
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = -np.log(np.clip(of_label, _SMALLEST_PROBABILITY, 1)).mean()
    return float(loss), float((probabilities.argmax(1) == labels).mean())


def score(probabilities: Probabilities, labels: Labels, *, class_names: tuple[str, ...]) -> Scores:
    """All scores from probabilities [N, C] and labels [N]."""
    loss, accuracy = loss_and_accuracy(probabilities, labels)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    shown = _most_confused(confusion)
    return Scores(
        loss=loss,
        accuracy=accuracy,
        num_examples=len(labels),
        classes=tuple(_class_score(confusion, index, name=name) for index, name in enumerate(class_names)),
        confusion=tuple(tuple(row) for row in confusion[np.ix_(shown, shown)].tolist()),
        wrong=_wrong_examples(probabilities, labels, predicted),
        confusion_classes=tuple(shown.tolist()) if len(shown) < len(class_names) else None,
    )


def _most_confused(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of all classes, or of those with the most mistakes in their row and column, ascending."""
    mistakes = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:_MAX_CONFUSION_CLASSES])


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
