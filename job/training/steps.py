"""The steps: many optimizer updates in one graph call, for one replica or several.

Owns the step function, its compilation and the metric sums of the running epoch. Knows nothing about epochs' ends,
stores, checkpoints or signals: it yields after every chunk and `loop.py` decides.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import clock
from job.errors import IntegrityError, TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """Where training is after a chunk.

    Attributes:
        step: optimizer updates done in the whole run.
        loss_sum, num_correct, num_examples: sums over the running epoch so far.
        seconds: wall time of this chunk, the wait for its data included.
    """

    step: int
    loss_sum: float
    num_correct: int
    num_examples: int
    seconds: float

    @property
    def loss(self) -> float:
        """Mean categorical crossentropy of the running epoch so far, in nats."""
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
        optimizer: Any,
        compile_with: str,
        make_chunks: Callable[[int], Any],
        steps_per_epoch: int,
    ) -> None:
        """Model and optimizer may be mirrored over several devices.

        Args:
            compile_with: `xla` or `graph`.
            make_chunks: the tf.data.Dataset of chunks from a step on, see `pipeline.make_chunks`.
        """
        import tensorflow as tf

        self._strategy = strategy
        self._make_chunks, self._steps_per_epoch = make_chunks, steps_per_epoch
        with strategy.scope():
            optimizer.build(model.trainable_variables)
            # Summed on each replica and read once a chunk: a reduction at every step would cost more than the step.
            self._sums = {
                name: tf.Variable(
                    tf.zeros((), dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                    name=name,
                )
                for name, dtype in (("loss_sum", tf.float64), ("num_correct", tf.int64), ("num_examples", tf.int64))
            }
        # model.variables, not .weights: only the former holds the state of Dropout's seed generator.
        variables = [*model.variables, *optimizer.variables]
        self._state = {f"{index:03d}/{variable.path}": variable for index, variable in enumerate(variables)}
        self._state |= {f"sums/{name}": variable for name, variable in self._sums.items()}
        self._run_steps = _make_run_steps(
            strategy, model=model, optimizer=optimizer, sums=self._sums, is_xla=compile_with == "xla"
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next step depends on, and the running sums: a copy, by name."""
        return {name: np.array(variable.numpy()) for name, variable in self._state.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set what `state` returned.

        Raises:
            IntegrityError: other names or shapes than this model and optimizer have.
        """
        expected = {(name, tuple(variable.shape)) for name, variable in self._state.items()}
        odd = expected ^ {(name, array.shape) for name, array in arrays.items()}
        if odd:
            raise IntegrityError(f"checkpoint: its arrays are not those of this model, such as {min(odd)}")
        sums = [*self._sums.values()]
        for name, variable in self._state.items():
            if any(variable is one for one in sums):
                first, *others = self._strategy.experimental_local_results(variable)
                first.assign(arrays[name])  # only their total counts
                for other in others:
                    other.assign(other.dtype.as_numpy_dtype(0))
            else:
                variable.assign(arrays[name])

    def start_epoch(self) -> None:
        """Set the metric sums to zero."""
        for variable in self._sums.values():
            for local in self._strategy.experimental_local_results(variable):
                local.assign(local.dtype.as_numpy_dtype(0))

    def run(self, *, start_step: int) -> Iterator[ChunkResult]:
        """Train on every chunk from a step on, yielding after each.

        Raises:
            TrainingError: the loss is not finite, naming epoch and step; that update must not be kept.
        """
        steps_per_epoch, started = self._steps_per_epoch, clock.monotonic()
        for images, one_hot, weights, chunk_start, num_steps in self._make_chunks(start_step):
            first_step = int(chunk_start)
            if first_step % steps_per_epoch == 0:
                self.start_epoch()
            bad_step = int(self._run_steps(images, one_hot, weights, num_steps))
            if bad_step >= 0:
                epoch, step_in_epoch = divmod(first_step + bad_step, steps_per_epoch)
                raise TrainingError(
                    f"loss is not finite in epoch {epoch + 1}, step {step_in_epoch + 1} of {steps_per_epoch} (global step "
                    f"{first_step + bad_step + 1}); nothing after it is kept; lower train.learning_rate"
                )
            sums = {name: variable.numpy() for name, variable in self._sums.items()}
            now = clock.monotonic()
            yield ChunkResult(
                step=first_step + int(num_steps),
                loss_sum=float(sums["loss_sum"]),
                num_correct=int(sums["num_correct"]),
                num_examples=int(sums["num_examples"]),
                seconds=now - started,
            )
            started = clock.monotonic()


def _make_run_steps(strategy: Any, *, model: Any, optimizer: Any, sums: dict[str, Any], is_xla: bool) -> Any:
    """A function (images [K, B, ...], one-hot [K, B, C], weights [K, B], num_steps) -> first bad step or -1."""
    import keras
    import tensorflow as tf

    num_replicas = strategy.num_replicas_in_sync

    def replica_step(images: Any, one_hot: Any, weights: Any) -> Any:
        """One update from this replica's share of the global batch; returns the sum of its losses."""
        # Keras sums gradients over replicas, so each divides by the weights of the whole global batch.
        total_weight = tf.reduce_sum(weights)
        share = images.shape[0] // num_replicas
        if num_replicas > 1:
            start = tf.distribute.get_replica_context().replica_id_in_sync_group * share
            images, one_hot, weights = (tensor[start : start + share] for tensor in (images, one_hot, weights))
        with tf.GradientTape() as tape:
            probabilities = model(images, training=True)
            losses = keras.losses.categorical_crossentropy(one_hot, probabilities) * weights
            loss_sum = tf.reduce_sum(losses)
            objective = loss_sum / total_weight
            if model.losses:  # penalties that layers of an own model ask for
                objective += tf.add_n(model.losses) / num_replicas
        gradients = tape.gradient(objective, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        is_correct = (tf.argmax(probabilities, 1) == tf.argmax(one_hot, 1)) & (weights > 0)
        sums["loss_sum"].assign_add(tf.cast(loss_sum, tf.float64))
        sums["num_correct"].assign_add(tf.reduce_sum(tf.cast(is_correct, tf.int64)))
        sums["num_examples"].assign_add(tf.cast(tf.reduce_sum(weights), tf.int64))
        return loss_sum

    def run_steps(images: Any, one_hot: Any, weights: Any, num_steps: Any) -> Any:
        # `while` over tensors: `for i in tf.range(n)` would compile again for every n.
        index, bad_step = tf.constant(0), tf.constant(-1)
        while index < num_steps:
            loss_sums = strategy.run(replica_step, args=(images[index], one_hot[index], weights[index]))
            is_finite = tf.reduce_all([tf.math.is_finite(s) for s in strategy.experimental_local_results(loss_sums)])
            bad_step = tf.where((bad_step < 0) & ~is_finite, index, bad_step)
            index += 1
        return bad_step

    return tf.function(run_steps, jit_compile=True if is_xla else None)
