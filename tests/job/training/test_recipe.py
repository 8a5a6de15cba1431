"""Optimizers, schedules, loss and clipping: against formulas worked out by hand, and against Keras."""

import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import pytest

from job.config import TrainSection
from job.errors import ConfigError
from job.training.recipe import balanced_weights, check_settings
from tests.conftest import REPOSITORY, job_environment


def run_script(script: str) -> str:
    """In a process of its own: TensorFlow keeps its devices. From a file: Keras looks for the source of functions."""
    environment = job_environment({"PYTHONPATH": str(REPOSITORY)})
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            [sys.executable, file.name], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_balanced_weights_make_classes_count_alike_and_leave_the_mean_at_1() -> None:
    labels = np.array([0] * 6 + [2] * 2 + [3] * 4)
    weights = balanced_weights(labels, num_classes=4)
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([12 / 18, 0, 2, 1])
    assert weights[labels].mean() == pytest.approx(1)
    assert [weights[label] * (labels == label).sum() for label in (0, 2, 3)] == pytest.approx([4, 4, 4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ("top_3_accuracy",)}, "train.metrics: top_3_accuracy is always 1 with 3 classes"),
        ({"metrics": ("auc", "top_12_accuracy")}, "top_12_accuracy is always 1 with 3 classes"),
        (
            {"schedule": "warmup-cosine", "warmup_steps": 8},
            "train.warmup_steps: must be below the 8 steps of the run, received 8",
        ),
        ({"warmup_steps": 9}, "must be below the 8 steps of the run, received 9"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(settings: dict[str, Any], message: str) -> None:
    config = TrainSection(epochs=2, global_batch_size=16, **settings)
    with pytest.raises(ConfigError) as refused:
        check_settings(config, num_examples=50, num_classes=3)
    assert message in str(refused.value)


def test_what_fits_the_data_is_taken() -> None:
    config = TrainSection(epochs=2, global_batch_size=16, warmup_steps=7, metrics=("top_2_accuracy", "f1_macro"))
    check_settings(config, num_examples=50, num_classes=3)


SCHEDULES = """
import keras, math, numpy as np
from job.config import TrainSection
from job.training.recipe import build_optimizer, learning_rate

STEPS = 5

def rates(**settings):
    schedule = learning_rate(TrainSection(learning_rate=0.5, epochs=4, **settings), steps_per_epoch=STEPS)
    return [float(schedule(step)) for step in range(20)]

def cosine(share):
    return 0.5 * 0.5 * (1 + math.cos(math.pi * share))

np.testing.assert_allclose(rates(schedule="cosine"), [cosine(step / 20) for step in range(20)], rtol=1e-5)
np.testing.assert_allclose(
    rates(schedule="warmup-cosine", warmup_steps=8),
    [0.5 * step / 8 if step < 8 else cosine((step - 8) / 12) for step in range(20)], rtol=1e-5,
)
cut = [0.5 * 0.2 ** (step // 10) for step in range(20)]
np.testing.assert_allclose(rates(schedule="step", step_epochs=2, step_factor=0.2), cut, rtol=1e-6)
np.testing.assert_allclose(
    rates(schedule="step", step_epochs=2, step_factor=0.2, warmup_steps=4),
    [rate * min(step / 4, 1) for step, rate in enumerate(cut)], rtol=1e-6,
)
np.testing.assert_allclose(rates(warmup_steps=4), [0.5 * min(step / 4, 1) for step in range(20)], rtol=1e-6)

# What earlier versions built, to the names of its variables.
for name, made in (
    ("sgd", keras.optimizers.SGD(0.01, momentum=0.0)),
    ("momentum", keras.optimizers.SGD(0.01, momentum=0.9)),
    ("adam", keras.optimizers.Adam(0.01)),
):
    ours = build_optimizer(TrainSection(optimizer=name), steps_per_epoch=STEPS)
    assert type(ours) is type(made)
    assert {**ours.get_config(), "name": ""} == {**made.get_config(), "name": ""}
    assert [variable.name for variable in ours.variables] == ["iteration", "learning_rate"]

for name, kind, expected in (
    ("nesterov", "SGD", {"nesterov": True, "momentum": 0.9, "weight_decay": None}),
    ("rmsprop", "RMSprop", {}), ("adamw", "AdamW", {"weight_decay": 0.004}), ("lion", "Lion", {}),
):
    ours = build_optimizer(TrainSection(optimizer=name), steps_per_epoch=STEPS)
    config = ours.get_config()
    assert type(ours).__name__ == kind and config.items() >= expected.items(), config
config = build_optimizer(TrainSection(optimizer="lion", weight_decay=0.1, clip_norm=2.0), steps_per_epoch=STEPS).get_config()
assert (config["weight_decay"], config["global_clipnorm"], config["clipnorm"]) == (0.1, 2.0, None)
print("alike")
"""


@pytest.mark.tf
def test_schedules_and_optimizers_are_those_of_the_formulas_and_of_earlier_versions() -> None:
    assert run_script(SCHEDULES).endswith("alike\n")


LOSS = """
import keras, numpy as np, tensorflow as tf
from job.config import TrainSection
from job.training.recipe import make_recipe

labels = np.array([0] * 6 + [1] * 2 + [2] * 4)
one_hot = np.eye(3, dtype=np.float32)[labels]
probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 12).astype(np.float32)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])

def losses(**settings):
    recipe = make_recipe(
        TrainSection(**settings), model, train_labels=labels, num_classes=3, steps_per_epoch=5, num_replicas=1
    )
    assert recipe.clip is None
    return recipe.loss(tf.constant(one_hot), tf.constant(probabilities)).numpy()

plain = keras.losses.categorical_crossentropy(one_hot, probabilities).numpy()
assert np.array_equal(losses(), plain)
smooth = one_hot * 0.9 + 0.1 / 3
np.testing.assert_allclose(losses(label_smoothing=0.1), -(smooth * np.log(probabilities)).sum(1), rtol=1e-4)
weights = np.array([12 / 18, 2, 1], np.float32)[labels]
np.testing.assert_allclose(losses(class_weights="balanced"), plain * weights, rtol=1e-6)

# The mean is over the examples, not over their weights: as Keras' fit does with class_weight.
expected = keras.losses.CategoricalCrossentropy()(one_hot, probabilities, sample_weight=weights)
np.testing.assert_allclose(losses(class_weights="balanced").sum() / 12, float(expected), rtol=1e-6)
print("alike")
"""


@pytest.mark.tf
def test_loss_has_smoothing_and_class_weights_and_is_divided_by_the_examples_as_in_keras() -> None:
    assert run_script(LOSS).endswith("alike\n")


CLIPPING = """
import numpy as np, keras, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from job.config import TrainSection
from job.training.recipe import make_recipe

shares = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)  # the gradient of each replica; their sum has norm 5

def weights_after_one_step(devices, compiled=None, takes_clip=True):
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
        if compiled:
            model.compile(keras.optimizers.SGD(1.0, **compiled), "categorical_crossentropy")
        recipe = make_recipe(
            TrainSection(learning_rate=1.0, clip_norm=None if compiled else 1.0), model, train_labels=np.array([0, 1]),
            num_classes=2, steps_per_epoch=5, num_replicas=len(devices) if takes_clip else 1,
        )
        recipe.optimizer.build(model.trainable_variables)

    def step():
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        gradient = tf.reshape(tf.gather(shares, number) if len(devices) > 1 else shares.sum(0), (2, 1))
        gradients = [gradient]
        if recipe.clip:
            gradients = recipe.clip(gradients)
        recipe.optimizer.apply(gradients, model.trainable_variables)

    tf.function(lambda: strategy.run(step))()
    return model.trainable_variables[0].numpy().ravel()

for compiled in (None, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 3.5}):
    one = weights_after_one_step(["/cpu:0"], compiled)
    two = weights_after_one_step(["/cpu:0", "/cpu:1"], compiled)
    np.testing.assert_allclose(two, one, rtol=1e-6)
np.testing.assert_allclose(weights_after_one_step(["/cpu:0", "/cpu:1"]), [-0.6, -0.8], rtol=1e-6)
# What Keras does: each replica clips its own share to norm 1, and the sum has norm 1.41.
np.testing.assert_allclose(weights_after_one_step(["/cpu:0", "/cpu:1"], takes_clip=False), [-1, -1], rtol=1e-6)
print("alike")
"""


@pytest.mark.tf
def test_replicas_clip_the_gradient_of_the_whole_batch_which_keras_does_not() -> None:
    assert run_script(CLIPPING).endswith("alike\n")
