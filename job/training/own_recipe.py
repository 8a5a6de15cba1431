"""What the user's `model.compile` says: optimizer, loss and metrics of a model of their own; refused where it cannot be kept.

A model that is not compiled is trained as `train.*` says (`recipe.py`).
"""

import json
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from job.config import TrainSection
from job.datasets.dataset import Labels
from job.errors import ConfigError, TrainingError
from job.logs import warn
from job.plugins import user_code
from job.training.evaluation import Probabilities

_REPLACED = (
    *("optimizer", "learning_rate", "weight_decay", "clip_norm", "label_smoothing"),
    *("schedule", "warmup_steps", "step_epochs", "step_factor"),
)
"""Settings in whose place a compiled model's own optimizer and loss are."""
_STEPS_OF_KERAS = ("train_step", "test_step", "predict_step", "compute_loss", "fit")
_ALWAYS_REPORTED = ("accuracy", "acc")
"""What every run reports under the name accuracy; a metric object of such a name must be that very one."""
_ACCURACIES = ("CategoricalAccuracy", "SparseCategoricalAccuracy")
_TAKEN_NAMES = {"loss", "examples"}
_BATCH_EXAMPLES, _MAX_METRICS = 1000, 8
_DIGITS = 6
"""Keras' float32 sums differ in the last digits from one number of threads to another; so many are kept."""


def is_compiled(model: Any) -> bool:
    """Whether the user has called `model.compile`."""
    return bool(getattr(model, "compiled", False))


def check_recipe(model: Any, config: TrainSection, *, name: str, num_classes: int) -> None:
    """Refuse what a model of the user's own asks of its training and would not get.

    Args:
        model: outside any strategy scope.
        name: the user's function, for the messages.

    Raises:
        ConfigError: a training step of its own; compiled with something that cannot be kept, or beside settings that it replaces.
    """
    import keras

    for step in _STEPS_OF_KERAS:
        if getattr(type(model), step) is not getattr(keras.Model, step) or step in vars(model):
            raise _refused(
                name,
                f"its model has a {step} of its own, which the job would not call: it makes many steps in one graph, over all "
                "replicas, and resumes them bit for bit; use loss, metrics and add_loss",
            )
    if not is_compiled(model):
        return
    fields = TrainSection.model_fields
    beside = [f"train.{field}" for field in _REPLACED if getattr(config, field) != fields[field].default]
    if beside:
        raise _refused(
            name,
            f"its model is compiled: its own optimizer and loss are used; drop {', '.join(beside)}, or "
            "do not compile the model",
        )
    _check_optimizer(model.optimizer, name)
    _check_loss(model, name, num_classes=num_classes)
    _check_metrics(model, name, num_classes=num_classes, more=config.metrics)
    _warn_of_speed(model)


def describe_recipe(model: Any) -> dict[str, Any]:
    """What a model is compiled with, as JSON that is the same in every process; empty when it is not compiled.

    Returns:
        `optimizer` and `loss` as Keras serializes them, without their own names; `metrics`: names.

    Raises:
        ConfigError: the optimizer or the loss cannot say what it is made of.
    """
    import keras

    if not is_compiled(model):
        return {}
    try:
        with warnings.catch_warnings(action="ignore"):  # that a lambda could not be read back
            parts = {part: keras.saving.serialize_keras_object(getattr(model, part)) for part in ("optimizer", "loss")}
        described: dict[str, Any] = json.loads(json.dumps(parts, allow_nan=False))
    except (OSError, TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"model.build: optimizer and loss of the compiled model must say in get_config what they are made of: {error}"
        ) from error
    for part in described.values():
        if isinstance(part, dict):
            _drop_names(part)
    return described | {"metrics": metric_names(model)}


def _drop_names(part: dict[str, Any]) -> None:
    """Names that Keras counts up, and the bytes of a lambda, which its source tells better."""
    if part.get("class_name") == "__lambda__":
        part["config"] = {}
    if isinstance(part.get("config"), dict):
        part["config"].pop("name", None)


def _refused(name: str, reason: str) -> ConfigError:
    return ConfigError(f"model.build: {name}: {reason}")


def _check_optimizer(optimizer: Any, name: str) -> None:
    import keras

    if optimizer is None:
        raise _refused(name, "its model is compiled without an optimizer; give compile one")
    kind = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or hasattr(optimizer, "optimizers"):
        raise _refused(
            name, f"its optimizer is a {kind}, which wraps others; the job takes one optimizer, in float32 or bfloat16"
        )
    if optimizer.built:
        raise _refused(
            name,
            f"its {kind} is in use already, as that of a loaded model is; compile again with a new optimizer, or load with "
            "compile=False",
        )
    if optimizer.use_ema:
        raise _refused(
            name, f"its {kind} has use_ema=True: the averages would be needed in the result, and are not used; drop it"
        )
    if optimizer.gradient_accumulation_steps:
        raise _refused(
            name,
            f"its {kind} has gradient_accumulation_steps, which Keras cannot do under the job's tf.distribute strategy; raise "
            "train.global_batch_size in its place",
        )
    rate = optimizer._learning_rate
    if callable(rate) and not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        raise _refused(
            name,
            f"its {kind} has a function as learning rate, whose value no checkpoint holds; use a "
            "keras.optimizers.schedules.LearningRateSchedule",
        )


def _check_loss(model: Any, name: str, *, num_classes: int) -> None:
    if model.loss is None:
        raise _refused(name, "its model is compiled without a loss; give compile one, such as categorical_crossentropy")
    with user_code(name, field="model.build", doing="what the model is compiled with cannot be read"):
        weights = _compile_config(model).get("loss_weights")
    if isinstance(model.loss, list | tuple | dict) or weights is not None:
        raise _refused(name, "its model is compiled with several losses or with loss_weights; the job takes one loss")
    with user_code(name, field="model.build", doing="the model's loss cannot be made or called"):
        config = _get_loss_config(model.loss)
        is_sparse = _takes_numbers(model.loss, num_classes=num_classes)
    if config.get("from_logits"):
        raise _refused(
            name,
            "its loss has from_logits=True: the model must end in probabilities, which the job evaluates and exports; end in "
            "softmax, and drop from_logits",
        )
    if config.get("ignore_class") is not None:
        raise _refused(name, "its loss has ignore_class, which changes what the mean is over; leave these examples out")
    if config.get("reduction", "mean") not in ("mean", "sum_over_batch_size"):
        raise _refused(
            name,
            f"its loss has reduction={config['reduction']!r}; the job divides by the examples of the whole batch: use "
            "sum_over_batch_size",
        )
    if is_sparse is None:
        raise _refused(
            name,
            f"its loss must take labels, one-hot [N, {num_classes}] or numbers [N], and probabilities [N, {num_classes}], and "
            "return one loss for each example [N], not their mean",
        )


def _get_loss_config(loss: Any) -> dict[str, Any]:
    import keras

    found = _get_loss(loss)
    return dict(found.get_config()) if isinstance(found, keras.losses.Loss) else {}


def _get_loss(loss: Any) -> Any:
    """A `keras.losses.Loss`, or a function of (labels, probabilities)."""
    import keras

    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return keras.losses.categorical_crossentropy
    return keras.losses.get(loss)


def _per_example(loss: Any) -> Callable[[Any, Any], Any]:
    """A loss without its reduction, in float32 as Keras calls it."""
    import keras

    found = _get_loss(loss)
    call = found.call if isinstance(found, keras.losses.Loss) else found
    return lambda labels, probabilities: call(
        keras.ops.cast(labels, "float32"), keras.ops.cast(probabilities, "float32")
    )


def _takes_numbers(loss: Any, *, num_classes: int) -> bool | None:
    """Whether a loss takes labels as numbers, not one-hot; None: neither gives one loss for each example.

    Tried on one example more than there are classes, so that no wrong shape fits by chance.
    """
    call, labels = _per_example(loss), np.arange(num_classes + 1) % num_classes
    probabilities = np.full((num_classes + 1, num_classes), 1 / num_classes, np.float32)
    raised: list[Exception] = []
    for is_number, given in ((False, np.eye(num_classes, dtype=np.float32)[labels]), (True, labels)):
        try:
            result = call(given, probabilities)
        except Exception as error:  # noqa: BLE001 - of the user's loss, in any form
            raised.append(error)
            continue
        if tuple(result.shape) == labels.shape:
            return is_number
    if len(raised) == 2:
        raise raised[0]
    return None


def loss_of(model: Any, *, num_classes: int) -> Callable[[Any, Any], Any]:
    """The compiled loss: one-hot labels [B, C] and probabilities [B, C] -> the loss of each example, float32 [B]."""
    import tensorflow as tf

    call = _per_example(model.loss)
    if not _takes_numbers(model.loss, num_classes=num_classes):
        return call
    return lambda one_hot, probabilities: call(tf.argmax(one_hot, 1), probabilities)


def metric_names(model: Any) -> list[str]:
    """Names of the metrics that a model is compiled with, in their order; without accuracy, which every run reports."""
    return [name for name in _all_metric_names(model) if name not in _ALWAYS_REPORTED]


def _compile_config(model: Any) -> dict[str, Any]:
    with warnings.catch_warnings(action="ignore"):  # that a lambda could not be read back
        return dict(model.get_compile_config())


def _all_metric_names(model: Any) -> list[str]:
    config = _compile_config(model)
    given = [config.get("metrics") or (), config.get("weighted_metrics") or ()]
    if any(isinstance(some, dict) for some in given):
        raise ValueError(
            "metrics are given by the name of an output; the model has one: give compile one list of metrics"
        )
    names = []
    for metric in [*given[0], *given[1]]:
        of_object = metric.get("config") if isinstance(metric, dict) else metric
        name = str(of_object.get("name") if isinstance(of_object, dict) else of_object)
        if name in _ALWAYS_REPORTED and isinstance(metric, dict) and metric["class_name"] not in _ACCURACIES:
            raise ValueError(
                f"a {metric['class_name']} is called {name}, which is the job's own; give it another name="
            )
        names.append(name)
    return names


def _check_metrics(model: Any, name: str, *, num_classes: int, more: tuple[str, ...]) -> None:
    with user_code(name, field="model.build", doing="the model's metrics cannot be computed"):
        names = _all_metric_names(model)
        taken = _TAKEN_NAMES.union(more, (one for one in names if names.count(one) > 1))
        odd = [one for one in names if one in taken or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", one)]
        if odd or len(names) > _MAX_METRICS:
            raise _refused(
                name,
                f"its metrics, at most {_MAX_METRICS}, need names of their own, of letters, digits and underscores, received "
                f"{', '.join(odd or names)}; give each a name=",
            )
        if names:
            labels = np.arange(2 * num_classes) % num_classes
            measure_of(model, num_classes=num_classes)(
                np.full((len(labels), num_classes), 1 / num_classes, np.float32), labels
            )


def measure_of(model: Any, *, num_classes: int) -> Callable[[Probabilities, Labels], dict[str, float]]:
    """Computes the compiled metrics on stored predictions, with labels in the form that the loss takes, as Keras' fit does."""
    is_number, names = _takes_numbers(model.loss, num_classes=num_classes), _all_metric_names(model)

    def measure(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
        import tensorflow as tf

        model.reset_metrics()
        with tf.device("/CPU:0"):
            for start in range(0, len(labels), _BATCH_EXAMPLES):
                part = labels[start : start + _BATCH_EXAMPLES]
                y = part if is_number else np.eye(num_classes, dtype=np.float32)[part]
                values = model.compute_metrics(None, tf.constant(y), tf.constant(probabilities[start:][: len(part)]))
        return {name: _to_number(name, values[name]) for name in names if name not in _ALWAYS_REPORTED}

    return measure


def finite_measure_of(model: Any, *, num_classes: int) -> Callable[[Probabilities, Labels], dict[str, float]]:
    """As `measure_of`, for a training that has begun: it raises a TrainingError where a metric raises or is not finite."""
    own = measure_of(model, num_classes=num_classes)

    def measure(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
        try:
            with user_code("the compiled model's metrics", field="model.build", doing="cannot be computed"):
                return _check_finite(own(probabilities, labels))
        except ConfigError as error:
            raise TrainingError(str(error)) from error

    return measure


def try_metrics(model: Any, probabilities: Probabilities, labels: Labels, *, name: str, num_classes: int) -> None:
    """Compute the compiled metrics before the training, on predictions of its own.

    Args:
        probabilities: of a few examples.
        labels: int64 [N], such as those of the test split.

    Raises:
        ConfigError: one raises, or is not finite.
    """
    if not is_compiled(model) or not metric_names(model):
        return
    rows = np.arange(len(labels)) % len(probabilities)
    with user_code(name, field="model.build", doing="the model's metrics cannot be computed on its predictions"):
        _check_finite(measure_of(model, num_classes=num_classes)(probabilities[rows], labels))


def _check_finite(values: dict[str, float]) -> dict[str, float]:
    odd = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if odd:
        raise ValueError(
            f"metric {', '.join(odd)}; a metric must be a finite number, which JSON can hold: mind divisions by 0"
        )
    return values


def _to_number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.shape:
        raise ValueError(f"metric {name} has {array.size} values; average them to one number, such as average='macro'")
    return float(f"{float(array):.{_DIGITS}g}")


def _warn_of_speed(model: Any) -> None:
    """What changes the speed alone, and is the job's own."""
    config = _compile_config(model)
    chosen = [name for name, value in (("run_eagerly", False), ("steps_per_execution", 1)) if config.get(name) != value]
    if chosen:
        warn(
            "recipe.not_used",
            arguments=chosen,
            reason="the job compiles many steps into one graph, whatever these arguments of model.compile say; results are the "
            "same; see train.compile",
        )
