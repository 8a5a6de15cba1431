"""TensorBoard's event files: loss, accuracy, learning rate and more metrics by epoch, beside the stored log.

Derived, and read by nothing here. After each checkpoint one more create-only object holds the epochs that have ended since the
one before, so that a run can be looked at while it trains. An attempt that goes on from a checkpoint begins with epoch 1 again:
its files are the whole curve, whatever the attempt before had no time to write.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from job.contract import event_file_key
from job.logs import warn
from job.runs.identity import AttemptIdentity
from job.store.backend import point
from job.store.store import Store
from job.texts import one_line
from job.training.export import temporary_folder
from job.training.history import EpochRecord

MAX_EPOCHS = 10_000
"""Of an attempt: later ones are left out."""
_SCORES = ("loss", "accuracy", "test_loss", "test_accuracy", "val_loss", "val_accuracy", "learning_rate")


class HasHistory(Protocol):
    """A `Training`, as far as it is looked at here."""

    history: list[EpochRecord]


class EventFiles:
    """Writes what the epochs came to, for one attempt; on the thread of the checkpoints."""

    def __init__(self, training: HasHistory, identity: AttemptIdentity) -> None:
        self._training, self._identity = training, identity
        self._num_epochs = self._num_files = 0

    def write_segment(self, store: Store) -> None:
        """Store one file with the epochs that are new; a fault costs a warning, and the next file has them too."""
        epochs = self._training.history[self._num_epochs : MAX_EPOCHS]
        if not epochs:
            return
        run, attempt = self._identity.run, self._identity.attempt
        try:
            store.create(event_file_key(run, attempt_id=attempt, number=self._num_files), event_file_of(epochs))
        except Exception as error:  # noqa: BLE001 - a curve is no reason to lose a run
            warn("tensorboard.not_stored", reason=one_line(f"{type(error).__name__}: {error}", limit=1000))
            return
        self._num_epochs += len(epochs)
        self._num_files += 1


def event_file_of(epochs: Sequence[EpochRecord]) -> bytes:
    """A file of TensorBoard's events, with the epoch as its step.

    Raises:
        JobError: no room for a temporary file.
    """
    import tensorflow as tf

    with temporary_folder("events") as folder, tf.device("CPU:0"):
        with point("write", "events"), tf.summary.create_file_writer(str(folder)).as_default():
            for epoch in epochs:  # tf.summary.scalar asks for the package tensorboard, which is not in the image
                values = [tf.compat.v1.Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(epoch)]
                summary = tf.compat.v1.Summary(value=values)
                tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=epoch.epoch)
        return _only_file(folder.iterdir())


def _only_file(paths: Iterable[Path]) -> bytes:
    (path,) = paths
    return path.read_bytes()


def _scalars(epoch: EpochRecord) -> Iterator[tuple[str, float]]:
    """What is known of an epoch; more metrics have the name of what was scored before them."""
    for name in _SCORES:
        value = getattr(epoch, name)
        if value is not None:
            yield name, value
    scored = "val" if epoch.val_loss is not None else "test"
    for name, value in epoch.metrics.items():
        yield f"{scored}_{name}", value
    yield "examples_per_second", epoch.examples_per_second
