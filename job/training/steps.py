"""The steps: many optimizer updates in one graph call, for one replica or several.

Owns the step function, its compilation and the metric sums of the running epoch. Knows nothing about epochs' ends,
stores, checkpoints or signals: it yields after every chunk and `loop.py` decides.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import clock
from job.errors import ConfigError, IntegrityError, TrainingError
from job.training.recipe import Recipe
from job.training.workers import Workers, peer_errors, was_stopped_while_joining

_SUMS = ("loss_sum", "num_correct", "num_examples")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """Where training is after a chunk.

    Attributes:
        step: optimizer updates done in the whole run.
        loss_sum, num_correct, num_examples: sums over the running epoch so far.
        seconds: wall time of this chunk, the wait for its data included.
        stopping: with several workers, indexes of those that were asked to stop: all hear it after the same chunk. None: this
            process decides alone.
    """

    step: int
    loss_sum: float
    num_correct: int
    num_examples: int
    seconds: float
    stopping: tuple[int, ...] | None = None

    @property
    def loss(self) -> float:
        """Mean of what the steps of the running epoch made smaller, without penalties of layers: see `recipe.Loss`.

        With the default recipe it is the categorical crossentropy in nats; label smoothing, class weights or a loss of the user's
        own are in it. The loss on the test split never has them: it stays comparable from recipe to recipe.
        """
        return self.loss_sum / self.num_examples

    @property
    def accuracy(self) -> float:
        """Share of the running epoch's examples classified correctly before their update, 0..1."""
        return self.num_correct / self.num_examples


class StepRunner:
    """Runs chunks of steps on a model and optimizer built in the strategy's scope."""

    def __init__(
        self,
        strategy: Any,
        *,
        model: Any,
        recipe: Recipe,
        compile_with: str,
        make_chunks: Callable[[int], Any],
        steps_per_epoch: int,
        workers: Workers,
    ) -> None:
        """Model and optimizer may be mirrored over several devices.

        Args:
            recipe: made for the model, in the strategy's scope.
            compile_with: `xla` or `graph`.
            make_chunks: the tf.data.Dataset of chunks from a step on, see `pipeline.make_chunks`.

        Raises:
            ConfigError: several workers, and a variable that each of them keeps for itself.
        """
        self._strategy, self._workers = strategy, workers
        optimizer, self._advice = recipe.optimizer, recipe.advice
        self._make_chunks, self._steps_per_epoch = make_chunks, steps_per_epoch
        with strategy.scope():
            optimizer.build(model.trainable_variables)
            self._sums = make_sums()
        self._totals = {name: np.zeros((), variable.dtype.as_numpy_dtype) for name, variable in self._sums.items()}
        # model.variables, not .weights: only the former holds the state of Dropout's seed generator.
        variables = [*model.variables, *optimizer.variables]
        self._state = {f"{index:03d}/{variable.path}": variable for index, variable in enumerate(variables)}
        self._own_names = {
            f"{index:03d}/{variable.path}"
            for index, variable in enumerate(model.variables)
            if not variable.trainable and variable.aggregation == "none"
        }
        self._model_names = list(self._state)[: len(model.variables)]
        if workers.are_several:
            _check_readable(self._state)
        self._run_steps = _make_run_steps(
            strategy, model=model, recipe=recipe, sums=self._sums, is_xla=compile_with == "xla"
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, and the running sums: a copy, by name."""
        arrays = {name: np.array(variable.numpy()) for name, variable in self._state.items()}
        # As of the last chunk: to read the variables themselves, all workers would have to come together.
        return arrays | {f"sums/{name}": np.array(total) for name, total in self._totals.items()}

    def common_state(self) -> dict[str, NDArray[Any]]:
        """The part of `state` that is equal on all workers.

        A variable that is not trained and has no aggregation, such as the moving averages of BatchNormalization, has a value of
        its own on each replica. That of the first replica, which the chief has, is the run's.
        """
        return {name: array for name, array in self.state().items() if name not in self._own_names}

    def model_state(self) -> dict[str, NDArray[Any]]:
        """The model's part of `state`: a copy, by name."""
        return {name: np.array(self._state[name].numpy()) for name in self._model_names}

    def load_model(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set what `model_state` returned; each worker by itself, since none has to wait for another."""
        for name in self._model_names:
            self._state[name].assign(arrays[name])

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set what `state` returned, variable by variable in their order; their names are taken from there.

        Raises:
            IntegrityError: other variables, shapes or types than this model and optimizer have.
        """
        self._take_names(arrays)
        expected = {(name, tuple(variable.shape), str(variable.dtype)) for name, variable in self._state.items()}
        expected |= {(f"sums/{name}", (), str(total.dtype)) for name, total in self._totals.items()}
        odd = expected ^ {(name, array.shape, str(array.dtype)) for name, array in arrays.items()}
        if odd:
            raise IntegrityError(f"checkpoint: its arrays are not those of this model, such as {min(odd)}")
        for name, variable in self._state.items():
            variable.assign(arrays[name])
        self.start_epoch()
        self._totals = {name: np.array(arrays[f"sums/{name}"]) for name in self._sums}
        if self._workers.is_chief:  # only their total over all replicas counts
            for name, variable in self._sums.items():
                self._strategy.experimental_local_results(variable)[0].assign(self._totals[name])

    def _take_names(self, stored: Iterable[str]) -> None:
        """Call each variable what the first attempt has called it: Keras' count may be another in this process."""
        names = {position_of(name): name for name in stored}
        renamed = {name: names.get(position_of(name), name) for name in self._state}
        self._state = {renamed[name]: variable for name, variable in self._state.items()}
        self._own_names = {renamed[name] for name in self._own_names}
        self._model_names = [renamed[name] for name in self._model_names]

    def start_epoch(self) -> None:
        """Set the metric sums to zero."""
        for variable in self._sums.values():
            for local in self._strategy.experimental_local_results(variable):
                local.assign(local.dtype.as_numpy_dtype(0))

    def run(self, *, start_step: int, is_asked_to_stop: Callable[[], bool]) -> Iterator[ChunkResult]:
        """Train on every chunk from a step on, yielding after each.

        Args:
            is_asked_to_stop: whether this process was; the others hear of it with the next chunk.

        Raises:
            TrainingError: the loss is not finite, naming epoch and step; that update must not be kept.
            PeerLostError: another worker is gone; what this one holds must not be kept.
        """
        started, are_several = clock.monotonic(), self._workers.are_several
        for number, (*examples, chunk_start, num_steps) in enumerate(self._make_chunks(start_step)):
            first_step = int(chunk_start)
            if first_step % self._steps_per_epoch == 0:
                self.start_epoch()
            is_stopping = np.zeros(self._workers.count)
            if are_several and (is_asked_to_stop() or (number in (1, 2) and was_stopped_while_joining())):
                is_stopping[self._workers.index] = 1
            with peer_errors(self._workers):
                report = self._run_steps(*examples, num_steps, is_stopping).numpy()
            sums, votes, bad = np.split(report, [len(_SUMS), len(_SUMS) + len(is_stopping)])
            if bad.any():
                raise TrainingError(self._say_not_finite(first_step + int(np.flatnonzero(bad)[0])))
            self._totals = {
                name: np.array(value, self._totals[name].dtype) for name, value in zip(_SUMS, sums, strict=True)
            }
            now = clock.monotonic()
            yield ChunkResult(
                step=first_step + int(num_steps),
                loss_sum=float(self._totals["loss_sum"]),
                num_correct=int(self._totals["num_correct"]),
                num_examples=int(self._totals["num_examples"]),
                seconds=now - started,
                stopping=tuple(np.flatnonzero(votes).tolist()) if are_several else None,
            )
            started = clock.monotonic()

    def _say_not_finite(self, step: int) -> str:
        """For the update that leads from `step` to the next one."""
        epoch, step_in_epoch = divmod(step, self._steps_per_epoch)
        return (
            f"loss is not finite in epoch {epoch + 1}, step {step_in_epoch + 1} of {self._steps_per_epoch} (global step "
            f"{step + 1}); nothing after it is kept; {self._advice}"
        )


def position_of(name: str) -> str:
    """The name of an array of a state without what Keras makes up: `003/sequential_1/dense/bias` -> `003`."""
    return re.sub(r"^((?:[a-z]+/)?[0-9]{3,})/.*", r"\1", name)


def _check_readable(variables: Mapping[str, Any]) -> None:
    """Refuse variables that can only be read by all workers together: the chief saves when its own clock says so."""
    import tensorflow as tf

    for name, variable in variables.items():
        how = getattr(variable, "synchronization", None)  # of Keras, or of TensorFlow
        if how in ("on_read", tf.VariableSynchronization.ON_READ):
            raise ConfigError(
                f"model.build: variable {name} has synchronization ON_READ: each worker would keep its own value; use "
                "aggregation mean with the default synchronization, or cluster.workers=1"
            )


def make_sums() -> dict[str, Any]:
    """The metric sums of the running epoch. Call it inside `strategy.scope()`.

    Summed on each replica and read once a chunk: a reduction at every step would cost more than the step.
    """
    import tensorflow as tf

    return {
        name: tf.Variable(
            tf.zeros((), dtype),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
            name=name,
        )
        for name, dtype in zip(_SUMS, (tf.float64, tf.int64, tf.int64), strict=True)
    }


def make_replica_step(
    strategy: Any, *, model: Any, recipe: Recipe, sums: Mapping[str, Any]
) -> Callable[[Any, Any, Any, Any], Any]:
    """A function (images [B', ...], one-hot [B', C], weights [B'], total weight) that makes one update, for `strategy.run`."""
    import tensorflow as tf

    optimizer = recipe.optimizer
    num_replicas, num_local = strategy.num_replicas_in_sync, len(strategy.extended.worker_devices)

    def replica_step(images: Any, one_hot: Any, weights: Any, total_weight: Any) -> Any:
        """One update from this replica's share of the worker's batch; returns the sum of its losses."""
        # Keras sums gradients over replicas, so each divides by the weights of the whole global batch.
        share = images.shape[0] // num_local
        if num_local > 1:
            start = tf.distribute.get_replica_context().replica_id_in_sync_group % num_local * share
            images, one_hot, weights = (tensor[start : start + share] for tensor in (images, one_hot, weights))
        with tf.GradientTape() as tape:
            probabilities = tf.cast(model(images, training=True), tf.float32)  # an own model may end in bfloat16
            losses = recipe.loss(one_hot, probabilities) * weights
            loss_sum = tf.reduce_sum(losses)
            objective = loss_sum / total_weight
            if model.losses:  # penalties that layers of an own model ask for
                objective += tf.add_n([_to_number(penalty) for penalty in model.losses]) / num_replicas
            objective = optimizer.scale_loss(objective)  # `apply` divides by the factor
        gradients = tape.gradient(objective, model.trainable_variables)
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "its loss does not depend on any weight: there is no gradient; compute it from the probabilities"
            )
        if recipe.clip:
            gradients = recipe.clip(gradients)
        optimizer.apply(gradients, model.trainable_variables)
        is_correct = (tf.argmax(probabilities, 1) == tf.argmax(one_hot, 1)) & (weights > 0)
        sums["loss_sum"].assign_add(tf.cast(loss_sum, tf.float64))
        sums["num_correct"].assign_add(tf.reduce_sum(tf.cast(is_correct, tf.int64)))
        sums["num_examples"].assign_add(tf.cast(tf.reduce_sum(weights), tf.int64))
        return loss_sum

    return replica_step


def _to_number(penalty: Any) -> Any:
    """As Keras' fit takes what a layer adds: the sum of its values, in float32."""
    import tensorflow as tf

    number = penalty if penalty.shape.rank == 0 else tf.reduce_sum(penalty)
    return number if number.dtype == tf.float32 else tf.cast(number, tf.float32)


def _make_run_steps(strategy: Any, *, model: Any, recipe: Recipe, sums: dict[str, Any], is_xla: bool) -> Any:
    """A function (images [K, B', ...], one-hot [K, B', C], weights [K, B'], total weights [K], num_steps, float64 [W])
    -> float64 [3 + W + K] over all workers: the sums of the epoch so far, which of the W workers stop, bad losses by step.
    """
    import tensorflow as tf

    num_local = len(strategy.extended.worker_devices)
    replica_step = make_replica_step(strategy, model=model, recipe=recipe, sums=sums)

    def report(is_stopping: Any, is_bad: Any) -> Any:
        """One sum over all replicas of all workers, once a chunk."""
        context = tf.distribute.get_replica_context()
        is_first = tf.cast(context.replica_id_in_sync_group % num_local == 0, tf.float64)
        mine = tf.stack([tf.cast(sums[name], tf.float64) for name in _SUMS])
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat([mine, is_stopping * is_first, is_bad], 0))

    def run_steps(images: Any, one_hot: Any, weights: Any, totals: Any, num_steps: Any, is_stopping: Any) -> Any:
        # `while` over tensors: `for i in tf.range(n)` would compile again for every n.
        index, bad_step = tf.constant(0), tf.constant(-1)
        while index < num_steps:
            loss_sums = strategy.run(replica_step, args=(images[index], one_hot[index], weights[index], totals[index]))
            is_finite = tf.reduce_all([tf.math.is_finite(s) for s in strategy.experimental_local_results(loss_sums)])
            bad_step = tf.where((bad_step < 0) & ~is_finite, index, bad_step)
            index += 1
        is_bad = tf.one_hot(bad_step, images.shape[0], dtype=tf.float64)  # -1: all zeros
        return strategy.experimental_local_results(strategy.run(report, args=(is_stopping, is_bad)))[0]

    return tf.function(run_steps, jit_compile=True if is_xla else None)
