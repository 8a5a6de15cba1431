"""An own model under Keras `fit`: the job's arrays, batch size and optimizer. Keras shuffles by itself."""

import argparse
import time

import numpy as np

from benchmarks import sample_models
from benchmarks.task import emit


def main(*, model_name: str, data_name: str, batch_size: int, epochs: int, learning_rate: float, is_jit: bool) -> None:
    """Train as a first tutorial does; prints one event an epoch."""
    import keras

    data = getattr(sample_models, data_name)()
    images = data.train_images.astype(np.float32) / np.float32(255)
    one_hot = np.eye(len(data.class_names), dtype=np.float32)[data.train_labels]
    keras.utils.set_random_seed(1337)
    model = getattr(sample_models, model_name)(images.shape[1:], len(data.class_names))
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=is_jit,
    )
    starts: list[float] = []
    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda _epoch, _logs: starts.append(time.perf_counter()),
        on_epoch_end=lambda epoch, _logs: emit("epoch.end", epoch=epoch + 1, seconds=time.perf_counter() - starts[-1]),
    )
    model.fit(images, one_hot, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[callback])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a function of sample_models")
    parser.add_argument("data", help="a function of sample_models")
    parser.add_argument("batch_size", type=int)
    parser.add_argument("epochs", type=int)
    parser.add_argument("learning_rate", type=float)
    parser.add_argument("--jit", action="store_true")
    flags = parser.parse_args()
    main(
        model_name=flags.model,
        data_name=flags.data,
        batch_size=flags.batch_size,
        epochs=flags.epochs,
        learning_rate=flags.learning_rate,
        is_jit=flags.jit,
    )
