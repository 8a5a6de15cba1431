"""The tf.data pipeline against plain numpy, in a process of its own."""

import os
import subprocess
import sys

import pytest

from tests.conftest import job_environment

pytestmark = pytest.mark.tf

SCRIPT = """
import numpy as np
from job.training.pipeline import chunk_rows, make_chunks

random = np.random.default_rng(0)
images = random.integers(0, 256, (50, 4, 3), np.uint8)
labels = random.integers(0, 5, 50)
where = dict(global_batch_size=16, steps_per_chunk=3, seed=7, start_step=2, stop_step=9)
chunks = make_chunks(images=images, labels=labels, num_classes=5, image_shape=(12,), **where)
count = 0
for (pixels, one_hot, weights, totals, start, steps), expected in zip(
    chunks, chunk_rows(num_examples=50, **where), strict=True
):
    rows = images[expected.rows].reshape(3, 16, 12).astype(np.float32) / np.float32(255)
    assert pixels.dtype == "float32" and one_hot.dtype == "float32" and weights.dtype == "float32"
    assert np.array_equal(pixels, rows)
    assert np.array_equal(one_hot, np.eye(5, dtype=np.float32)[labels[expected.rows]])
    assert np.array_equal(weights, expected.weights) and np.array_equal(totals, expected.weights.sum(1))
    assert (int(start), int(steps)) == (expected.start_step, expected.num_steps)
    count += 1
print("chunks", count, "tuner", chunks.options().autotune.enabled)
"""


def test_chunks_hold_exactly_the_rows_of_the_order_and_no_tuner_delays_their_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=job_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # With tf.data's tuner on, the end of an iterator now and then takes seconds (4.7 s of a run of 46 s).
    assert done.stdout.split(os.linesep)[0] == "chunks 5 tuner False"


PENALTIES = """
import keras, numpy as np, tensorflow as tf
from job.config import TrainSection
from job.training.recipe import make_recipe
from job.training.steps import make_replica_step, make_sums

class Penalty(keras.layers.Layer):
    def call(self, x):
        self.add_loss(tf.reduce_mean(tf.square(x), axis=1))  # one for each example: Keras' fit adds them up
        return x

def model():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), Penalty(), keras.layers.Dense(3, "softmax")])

x = np.random.default_rng(0).random((16, 4), np.float32)
y = np.eye(3, dtype=np.float32)[np.arange(16) % 3]
strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
with strategy.scope():
    ours = model()
    where = {"train_labels": np.arange(16) % 3, "num_classes": 3, "steps_per_epoch": 1, "num_replicas": 1}
    recipe, sums = make_recipe(TrainSection(optimizer="sgd", learning_rate=0.1), ours, **where), make_sums()
    recipe.optimizer.build(ours.trainable_variables)
step = make_replica_step(strategy, model=ours, recipe=recipe, sums=sums)
strategy.run(step, args=(tf.constant(x), tf.constant(y), tf.ones(16), tf.constant(16.0)))
theirs = model()
theirs.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
theirs.fit(x, y, batch_size=16, epochs=1, verbose=0)
for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
print("penalties")
"""


def test_penalties_with_a_value_for_each_example_are_added_up_as_in_keras() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PENALTIES],
        env=job_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("penalties\n")
