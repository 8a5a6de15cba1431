"""(a) The reference program: Keras `fit` on numpy arrays, then evaluate and save. Keras chooses the rest.

Keras shuffles by itself, so its batches are not those of the other programs; its first weights are the same.
"""

import time
from typing import Any

from benchmarks.task import (
    BATCH_SIZE,
    LEARNING_RATE,
    NUM_CLASSES,
    WIDTHS,
    Arguments,
    Clock,
    emit,
    emit_epoch,
    load_task,
    parse_arguments,
    to_one_hot,
)


def main(arguments: Arguments) -> None:
    """Train as a first tutorial does."""
    clock = Clock()
    import keras

    clock.lap("import")
    task = load_task(arguments)
    clock.lap("data")
    model = build_model(keras)
    model.set_weights(task.weights)
    clock.lap("build")
    epoch_times = EpochTimes(keras)
    # One line an epoch: on a pipe the progress bar would write a line for every step.
    model.fit(
        task.train_images,
        to_one_hot(task.train_labels),
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        verbose=2,
        callbacks=[epoch_times.callback],
    )
    clock.lap("train")
    test_loss, test_accuracy = model.evaluate(task.test_images, to_one_hot(task.test_labels), verbose=0)
    clock.lap("evaluate")
    model.save(arguments.output_dir / "model.keras")
    clock.lap("save")
    epoch_times.emit(test_loss=test_loss, test_accuracy=test_accuracy)
    emit("run.end", phases=clock.phases)


def build_model(keras: Any) -> Any:
    """The reference model, compiled."""
    layers = [keras.layers.Dense(width, activation="sigmoid") for width in WIDTHS[1:-1]]
    output = keras.layers.Dense(NUM_CLASSES, activation="softmax")
    model = keras.Sequential([keras.Input((WIDTHS[0],)), *layers, output])
    model.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE), loss="categorical_crossentropy", metrics=["accuracy"])
    return model


class EpochTimes:
    """Notes when each epoch of `fit` begins and ends."""

    def __init__(self, keras: Any) -> None:
        self._start = 0.0
        self._epochs: list[tuple[float, dict[str, float]]] = []
        self.callback = keras.callbacks.LambdaCallback(on_epoch_begin=self._begin, on_epoch_end=self._end)

    def _begin(self, _epoch: int, _logs: object) -> None:
        self._start = time.perf_counter()

    def _end(self, _epoch: int, logs: dict[str, float]) -> None:
        self._epochs.append((time.perf_counter() - self._start, dict(logs)))

    def emit(self, *, test_loss: float, test_accuracy: float) -> None:
        """Report all epochs; only the last one was evaluated."""
        for number, (seconds, logs) in enumerate(self._epochs, start=1):
            is_last = number == len(self._epochs)
            emit_epoch(
                number,
                seconds=seconds,
                loss=logs["loss"],
                accuracy=logs["accuracy"],
                test_loss=test_loss if is_last else float("nan"),
                test_accuracy=test_accuracy if is_last else float("nan"),
            )


if __name__ == "__main__":
    main(parse_arguments())
