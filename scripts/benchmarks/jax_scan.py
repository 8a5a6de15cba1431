"""(d) The same maths in JAX: all steps of an epoch in one `lax.scan` under `jit`, data resident."""

import time
from typing import Any

import numpy as np

from benchmarks.task import (
    BATCH_SIZE,
    LEARNING_RATE,
    Arguments,
    Clock,
    emit,
    emit_epoch,
    load_task,
    parse_arguments,
    permutation,
    to_one_hot,
)


def main(arguments: Arguments) -> None:
    """Train and evaluate every epoch, then save."""
    clock = Clock()
    import jax

    clock.lap("import")
    task = load_task(arguments)
    train = (jax.numpy.asarray(task.train_images), jax.numpy.asarray(to_one_hot(task.train_labels)))
    test = (jax.numpy.asarray(task.test_images), jax.numpy.asarray(to_one_hot(task.test_labels)))
    clock.lap("data")
    parameters = [jax.numpy.asarray(weight) for weight in task.weights]
    train_epoch, evaluate = make_functions(jax)
    clock.lap("build")
    count = len(task.train_images)
    for epoch in range(arguments.epochs):
        start = time.perf_counter()
        parameters, sums = train_epoch(parameters, train, permutation(epoch, count).astype(np.int32))
        loss, accuracy = (float(value) / count for value in sums)
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = (float(value) / len(test[0]) for value in evaluate(parameters, test))
        emit_epoch(
            epoch + 1,
            seconds=seconds,
            loss=loss,
            accuracy=accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
        )
    clock.lap("train and evaluate")
    np.savez(arguments.output_dir / "model.npz", *[np.asarray(value) for value in parameters])
    clock.lap("save")
    emit("run.end", phases=clock.phases)


def make_functions(jax: Any) -> tuple[Any, Any]:
    """Compile-on-first-use functions: one epoch of training, and the sums of loss and hits over a split."""
    numpy = jax.numpy

    def sums_of(parameters: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        hidden = images
        for kernel, bias in zip(parameters[0:-2:2], parameters[1:-2:2], strict=True):
            hidden = jax.nn.sigmoid(hidden @ kernel + bias)
        logits = hidden @ parameters[-2] + parameters[-1]
        loss = -numpy.sum(labels * jax.nn.log_softmax(logits))
        return loss, numpy.sum(numpy.argmax(logits, 1) == numpy.argmax(labels, 1))

    def step(parameters: Any, images: Any, labels: Any) -> Any:
        def mean_loss(values: Any) -> tuple[Any, Any]:
            loss, hits = sums_of(values, images, labels)
            return loss / len(images), (loss, hits)

        (_, sums), gradients = jax.value_and_grad(mean_loss, has_aux=True)(parameters)
        return [p - LEARNING_RATE * g for p, g in zip(parameters, gradients, strict=True)], sums

    def train_epoch(parameters: Any, train: Any, order: Any) -> Any:
        def body(carry: Any, rows: Any) -> Any:
            return step(carry, train[0][rows], train[1][rows])

        whole = len(order) // BATCH_SIZE * BATCH_SIZE
        parameters, sums = jax.lax.scan(body, parameters, order[:whole].reshape(-1, BATCH_SIZE))
        totals = [numpy.sum(value) for value in sums]
        if whole < len(order):
            parameters, rest = body(parameters, order[whole:])
            totals = [total + value for total, value in zip(totals, rest, strict=True)]
        return parameters, totals

    evaluate = jax.jit(lambda parameters, split: sums_of(parameters, *split))
    return jax.jit(train_epoch, donate_argnums=0), evaluate


if __name__ == "__main__":
    main(parse_arguments())
