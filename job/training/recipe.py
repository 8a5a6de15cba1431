"""The recipe of a training: optimizer with its schedule, loss and metrics, from `train.*` or from the user's `model.compile`.

What a compiled model says is used; what would be ignored beside it is refused. Knows nothing about steps and epochs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from job import measures
from job.config import TrainSection
from job.datasets.dataset import Labels
from job.errors import ConfigError
from job.training import pipeline
from job.training.evaluation import Probabilities
from job.training.own_recipe import finite_measure_of, is_compiled, loss_of, metric_names

MOMENTUM = 0.9

_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": MOMENTUM}),
    "nesterov": ("SGD", {"momentum": MOMENTUM, "nesterov": True}),
    "rmsprop": ("RMSprop", {}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "lion": ("Lion", {}),
}
"""`train.optimizer` -> the class of Keras, and arguments of it."""

Loss = Callable[[Any, Any], Any]
"""(one-hot labels float32 [B, C], probabilities [B, C]) -> the loss of each example, float32 [B], class weights included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the weights are changed.

    Attributes:
        optimizer: of Keras; not yet built for any variables.
        clip: what several replicas do with their gradients before the optimizer sums them; None: nothing.
        advice: what to do when the loss is not finite.
    """

    optimizer: Any
    loss: Loss
    clip: Callable[[list[Any]], list[Any]] | None = None
    advice: str = "lower train.learning_rate"

    def learning_rate(self) -> float:
        """Of the next update; a function of the number of updates, which every checkpoint holds."""
        return float(f"{float(np.asarray(self.optimizer.learning_rate)):.6g}")  # what a float32 holds of it


def check_settings(config: TrainSection, *, num_examples: int, num_classes: int) -> None:
    """Refuse what does not fit the data.

    Args:
        num_examples: in the training split.

    Raises:
        ConfigError: a warm-up that never ends, or a metric that is always 1.
    """
    total_steps = pipeline.steps_per_epoch(num_examples, global_batch_size=config.global_batch_size) * config.epochs
    if config.warmup_steps >= total_steps:
        raise ConfigError(
            f"train.warmup_steps: must be below the {total_steps} steps of the run, received {config.warmup_steps}; lower it, "
            "or raise train.epochs"
        )
    for name in config.metrics:
        _check_top_k(name, setting="train.metrics", num_classes=num_classes)


def check_gate_metric(name: str, model: Any, *, num_classes: int) -> None:
    """Refuse a `promotion.metric` that the gate would not find after the training.

    Raises:
        ConfigError: neither the predictions nor the compiled model give it, or it is always 1.
    """
    _check_top_k(name, setting="promotion.metric", num_classes=num_classes)
    own = metric_names(model) if is_compiled(model) else []
    if name not in own and not measures.is_measure(name):
        raise ConfigError(
            "promotion.metric: must be accuracy, top_K_accuracy, auc, f1_macro or a metric that model.build compiles its model "
            f"with ({', '.join(own) or 'it has none'}), received {name!r}"
        )


def _check_top_k(name: str, *, setting: str, num_classes: int) -> None:
    if measures.is_share(name) and measures.k_of(name) >= num_classes:
        raise ConfigError(f"{setting}: {name} is always 1 with {num_classes} classes; use a smaller number")


def make_recipe(
    config: TrainSection,
    model: Any,
    *,
    name: str = "the function",
    train_labels: Labels,
    num_classes: int,
    steps_per_epoch: int,
    num_replicas: int,
) -> Recipe:
    """The recipe for a model. Call it inside `strategy.scope()`, where the model was made.

    Args:
        name: of the user's function, for the messages.
        train_labels: int64 [N], of the training split.
        steps_per_epoch: what a schedule counts in.

    Raises:
        ConfigError: the compiled optimizer was made outside the scope.
    """
    if is_compiled(model):
        optimizer, loss = model.optimizer, loss_of(model, num_classes=num_classes)
        _check_in_scope(optimizer, name)
    else:
        optimizer, loss = build_optimizer(config, steps_per_epoch=steps_per_epoch), _smoothed(config.label_smoothing)
    if config.class_weights == "balanced":
        loss = _weighted(loss, balanced_weights(train_labels, num_classes=num_classes))
    clip = _take_clipping(optimizer, num_replicas=num_replicas) if num_replicas > 1 else None
    return Recipe(optimizer=optimizer, loss=loss, clip=clip, advice=advice_on_rate(model))


def advice_on_rate(model: Any) -> str:
    """What to do when training diverges: `train.learning_rate` is refused beside a compiled model."""
    return "lower the learning rate of your optimizer" if is_compiled(model) else "lower train.learning_rate"


def build_optimizer(config: TrainSection, *, steps_per_epoch: int) -> Any:
    """The configured update rule, not yet built for any variables."""
    import keras

    name, arguments = _OPTIMIZERS[config.optimizer]
    more = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    rate = learning_rate(config, steps_per_epoch=steps_per_epoch)
    return getattr(keras.optimizers, name)(rate, global_clipnorm=config.clip_norm, **arguments, **more)


def learning_rate(config: TrainSection, *, steps_per_epoch: int) -> Any:
    """A number, or a schedule of Keras: number of updates made -> learning rate of the next one."""
    from keras.optimizers import schedules

    rate, warmup = config.learning_rate, config.warmup_steps
    total_steps = steps_per_epoch * config.epochs
    if config.schedule == "cosine":
        return schedules.CosineDecay(rate, total_steps)
    if config.schedule == "warmup-cosine":
        return schedules.CosineDecay(0.0, total_steps - warmup, warmup_target=rate, warmup_steps=warmup)
    schedule: Any = rate
    if config.step_epochs is not None:
        cuts = range(config.step_epochs, config.epochs, config.step_epochs)
        # Keras' boundaries are the last steps of their ranges.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in cuts]
        schedule = schedules.PiecewiseConstantDecay(
            boundaries, [rate * config.step_factor**number for number in range(len(cuts) + 1)]
        )
    return _warmed_up(schedule, warmup) if warmup else schedule


def _warmed_up(schedule: Any, num_steps: int) -> Any:
    """A schedule, or a number, times a factor that rises from 0 to 1: Keras has that for its cosine only."""
    import keras

    class WarmUp(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            share = keras.ops.cast(step, "float32") / num_steps
            return (schedule(step) if callable(schedule) else schedule) * keras.ops.minimum(share, 1.0)

    return WarmUp()


def _smoothed(label_smoothing: float) -> Loss:
    import keras

    def loss(one_hot: Any, probabilities: Any) -> Any:
        return keras.losses.categorical_crossentropy(one_hot, probabilities, label_smoothing=label_smoothing)

    return loss


def balanced_weights(labels: Labels, *, num_classes: int) -> Any:
    """float32 [C]: N / (classes that occur * examples of the class), so that their mean over the N examples is 1.

    The formula of scikit-learn's `class_weight="balanced"`; 0 for a class without examples, which nothing multiplies.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, weights, 0).astype(np.float32)


def _weighted(loss: Loss, class_weights: Any) -> Loss:
    import tensorflow as tf

    def weighted(one_hot: Any, probabilities: Any) -> Any:
        return loss(one_hot, probabilities) * tf.reduce_sum(one_hot * class_weights, axis=1)

    return weighted


def _take_clipping(optimizer: Any, *, num_replicas: int) -> Callable[[list[Any]], list[Any]] | None:
    """Clip the gradients of the whole batch, in the place of the optimizer; None when it clips nothing.

    Keras clips in `apply`, and sums over the replicas after it: each replica would clip its own share, by another factor.
      1. Each replica adds up the gradients of all.
      2. Each clips the sum as the optimizer would; the optimizer's own clipping is off.
      3. Each hands the optimizer its share of the result, and the optimizer adds up the shares.
    """
    import tensorflow as tf

    norm, global_norm, value = optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue
    if not (norm or global_norm or value):
        return None
    optimizer.clipnorm = optimizer.global_clipnorm = optimizer.clipvalue = None

    def clip(gradients: list[Any]) -> list[Any]:
        if norm:
            return [tf.clip_by_norm(gradient, norm) for gradient in gradients]
        if global_norm:
            return list(tf.clip_by_global_norm(gradients, global_norm)[0])
        return [tf.clip_by_value(gradient, -value, value) for gradient in gradients]

    def clip_sum(gradients: list[Any]) -> list[Any]:
        known = [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, known)
        shares = iter(gradient / num_replicas for gradient in clip(total))
        return [None if gradient is None else next(shares) for gradient in gradients]

    return clip_sum


def _check_in_scope(optimizer: Any, name: str) -> None:
    import tensorflow as tf

    if not tf.distribute.get_strategy().extended.variable_created_in_scope(optimizer.variables[0].value):
        raise ConfigError(
            f"model.build: {name}: its model is compiled with an optimizer that was made before {name} was called; make the "
            "optimizer inside the function"
        )


def make_measure(
    config: TrainSection, model: Any, *, num_classes: int
) -> Callable[[Probabilities, Labels], dict[str, float]]:
    """`train.metrics`, and the metrics that a model is compiled with.

    Args:
        model: made outside any strategy scope: its metrics are not spread over replicas.
    """
    own = finite_measure_of(model, num_classes=num_classes) if is_compiled(model) and metric_names(model) else None

    def measure(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
        found = {name: measures.measure(name, probabilities, labels) for name in config.metrics}
        return found | own(probabilities, labels) if own else found

    return measure
