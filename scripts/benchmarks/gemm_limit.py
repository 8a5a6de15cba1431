"""(e) The limit: only the 8 matrix products of each step, at their real shapes.

Three forward, three for the gradients of the kernels, two for the gradients of the hidden layers (none for
the input). No activation, no update, no data feeding. In oneDNN, which TensorFlow uses, all steps of an epoch
in one function; and in OpenBLAS, which NumPy uses, since on some processors it is the faster of the two.
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import BATCH_SIZE, SEED, WIDTHS, emit, read_split

Matrix = NDArray[np.float32]


def main(data_dir: Path, *, library: str, epochs: int) -> None:
    """Time an epoch's products `epochs` times; the first time may include tracing."""
    # Without it TensorFlow computes in Eigen on processors that lack AVX-512.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    count = len(read_split(data_dir, "train")[1])
    make = make_onednn if library == "onednn" else make_openblas
    run_epoch = make(count // BATCH_SIZE, count % BATCH_SIZE)
    for epoch in range(epochs):
        start = time.perf_counter()
        checksum = run_epoch()
        emit("epoch.end", epoch=epoch + 1, seconds=time.perf_counter() - start, checksum=checksum)


def make_matrices(remainder: int) -> tuple[list[Matrix], Matrix, Matrix]:
    """Return three kernels, a whole batch, and the smaller last batch (whole where nothing remains)."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    kernels = [generator.normal(0, size[0] ** -0.5, size).astype(np.float32) for size in pairwise(WIDTHS)]
    batch = generator.random((BATCH_SIZE, WIDTHS[0])).astype(np.float32)
    return kernels, batch, batch[:remainder] if remainder else batch


def make_onednn(steps: int, remainder: int) -> Callable[[], float]:
    """Return a function that does `steps` whole steps and the remainder in one call of TensorFlow."""
    import tensorflow as tf

    arrays, batch_array, rest_array = make_matrices(remainder)
    kernels = [tf.Variable(array) for array in arrays]
    batch, rest = tf.Variable(batch_array), tf.Variable(rest_array)

    def one_step(inputs: Any) -> Any:
        # Variables are read in every step: no product may be moved out of the loop as always the same.
        return eight_products(tf.matmul, inputs.read_value(), *[kernel.read_value() for kernel in kernels])

    def products() -> Any:
        def body(step: Any, total: Any) -> tuple[Any, Any]:
            return step + 1, total + one_step(batch)

        start = (tf.constant(0), tf.constant(0.0))
        _, total = tf.while_loop(lambda step, _: step < steps, body, start, parallel_iterations=1)
        return total + one_step(rest) if remainder else total

    compiled = tf.function(products)
    return lambda: float(compiled())


def make_openblas(steps: int, remainder: int) -> Callable[[], float]:
    """Return a function that does the same through NumPy; a call from Python costs 1 in 100 of a product."""
    kernels, batch, rest = make_matrices(remainder)

    def matmul(left: Matrix, right: Matrix, *, transpose_a: bool = False, transpose_b: bool = False) -> Matrix:
        product: Matrix = (left.T if transpose_a else left) @ (right.T if transpose_b else right)
        return product

    def products() -> float:
        total = sum(float(eight_products(matmul, batch, *kernels)) for _ in range(steps))
        return total + float(eight_products(matmul, rest, *kernels)) if remainder else total

    return products


def eight_products(matmul: Any, inputs: Any, one: Any, two: Any, three: Any) -> Any:
    """One step's products, each needing an earlier one; returns a number that depends on all of them."""
    hidden_one = matmul(inputs, one)
    hidden_two = matmul(hidden_one, two)
    output = matmul(hidden_two, three)
    gradient_three = matmul(hidden_two, output, transpose_a=True)
    back_two = matmul(output, three, transpose_b=True)
    gradient_two = matmul(hidden_one, back_two, transpose_a=True)
    back_one = matmul(back_two, two, transpose_b=True)
    gradient_one = matmul(inputs, back_one, transpose_a=True)
    return gradient_one[0, 0] + gradient_two[0, 0] + gradient_three[0, 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("library", choices=("onednn", "openblas"))
    flags = parser.parse_args()
    main(flags.data, library=flags.library, epochs=flags.epochs)
