"""Models of the user's own: what is refused before step 1, with which words, and what tells two models apart."""

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.config import ModelSection, TrainSection
from job.errors import ConfigError
from job.training import own_model
from job.training.model import build_model
from job.training.recipe import make_recipe
from job.training.trial import try_step

pytestmark = pytest.mark.tf

CLASSES, SHAPE = 3, (6, 5)
EXAMPLES = np.random.default_rng(0).random((20, *SHAPE), np.float32)
LABELS = np.arange(20) % CLASSES
HEAD = """
import keras, os
import numpy as np
from keras import layers, ops
CALLS = []
def model(s, n, *more, last="softmax"):
    return keras.Sequential([keras.Input(s), layers.Flatten(), *more, layers.Dense(n, activation=last)])
class Own(keras.Model):
    def __init__(self, n, fault=None):
        super().__init__()
        self.flatten, self.dense, self.fault = layers.Flatten(), layers.Dense(n, activation="softmax"), fault
    def call(self, x, training=False):
        y = self.dense(self.flatten(x))
        return eval(self.fault) if self.fault else y
"""
Try = Callable[..., Any]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Try:
    """Writes `build` with a body, and prepares its model as a run does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def prepare(body: str, *, head: str = HEAD, precision: str = "float32", **args: Any) -> Any:
        names.append(f"own_{os.urandom(6).hex()}")
        text = textwrap.indent(body, "    ")
        (tmp_path / f"{names[-1]}.py").write_text(f"{head}\ndef build(s, n, **args):\n{text}\n")
        config = ModelSection(build=f"{names[-1]}:build", args=args)

        def make() -> Any:
            return build_model(config, image_shape=SHAPE, num_classes=CLASSES, seed=1, precision=precision)

        model = make()
        described = own_model.describe(model, config)
        own_model.try_once(model, config, examples=EXAMPLES, num_classes=CLASSES, precision=precision)

        def make_all() -> tuple[Any, Any]:
            made = make()
            return made, make_recipe(
                TrainSection(), made, train_labels=LABELS, num_classes=CLASSES, steps_per_epoch=2, num_replicas=1
            )

        try_step(make_all, name=config.build or "", input_shape=SHAPE, num_classes=CLASSES, batch_size=30)
        own_model.check_same(make(), described, config)
        return described

    return prepare


WORKS = [
    "return model(s, n)",
    "return model(s, n, layers.Dropout(0.5), layers.BatchNormalization())",
    "return Own(n)",
    "return Own(n, 'keras.random.dropout(y, 0.0) if training else y')",
    "x = keras.Input(s); return keras.Model(x, layers.Dense(n, activation='softmax')(layers.Flatten()(x)))",
    "return model(s, n, layers.Lambda(lambda x: x * 2))",
    "m = model(s, n); m.layers[0].trainable = False; return m",
    "return keras.Sequential([layers.Flatten(), layers.Dense(n, activation='softmax')])",
    "return model(s, n, layers.Dense(8, kernel_initializer=lambda shape, dtype=None: np.random.rand(*shape)))",
]


@pytest.mark.parametrize("body", WORKS)
def test_models_that_work_are_taken(own: Try, body: str) -> None:
    assert {"model", "initial_weights"} <= set(own(body))


BUGS = [
    ("pass", "must return a keras.Model, received NoneType"),
    ("return model(s, n), 1", "must return a keras.Model, received tuple"),
    ("return Own", "must return a keras.Model, received type"),
    ("return undefined", "raised NameError: name 'undefined' is not defined\n  own_.*:\\d+ in build: return undefined"),
    ("return model(s, n + 1)", r"must end in 3 probabilities for each image, its output shape is \(None, 4\)"),
    ("return model((28, 28), n)", r"takes inputs of shape \(28, 28\), one image of these data has \(6, 5\)"),
    ("return keras.Sequential([keras.Input(s, batch_size=7), layers.Flatten(), layers.Dense(n)])", "takes batches of 7 only"),
    ("return keras.Sequential([keras.Input(s), layers.Dense(n, activation='softmax')])", r"output shape is \(None, 6, 3\)"),
    ("return model(s, n, last=None)", "each row must be positive and sum to 1.*no logits"),
    ("return model(s, n, last='sigmoid')", "each row must be positive and sum to 1"),
    ("return model(s, n, last='log_softmax')", "each row must be positive and sum to 1"),
    ("return model(s, n, layers.Rescaling(float('inf')))", "not finite before any training"),
    ("m = model(s, n); m.trainable = False; return m", "has nothing to train: every layer is frozen"),
    ("return keras.Sequential([keras.Input(s), layers.Flatten(), layers.Softmax()])", r"output shape is \(None, 30\)"),
    ("return Own(n, '{\"p\": y}')", "in one tensor, received dict"),
    ("return Own(n, '[y, y]')", "in one tensor, received list"),
    ("return Own(n, 'y[:, :2]')", r"shape \(8, 3\) for 8 images, received \(8, 2\)"),
    ("return Own(n, 'y[0]')", r"shape \(8, 3\) for 8 images, received \(3,\)"),
    ("return Own(n, 'y + nothing')", "cannot be called on one batch of images: NameError: name 'nothing' is not defined\n  own_"),
    ("return Own(n, 'y + 1 / 0 if training else y')", "one batch of images in training: ZeroDivisionError"),
    ("return Own(n, 'ops.stop_gradient(y)')", "no weight of .* has a gradient"),
    ("CALLS.append(1); return model(s, n, layers.Dense(len(CALLS)))", r"another model each time it is called \(another model\)"),
    (
        "r = keras.initializers.RandomNormal(seed=int.from_bytes(os.urandom(4)))\n"
        "return model(s, n, layers.Dense(4, kernel_initializer=r))",
        "another model each time it is called",
    ),
    (
        "CALLS.append(1); m = model(s, n); m.set_weights([w + len(CALLS) for w in m.get_weights()]); return m",
        r"another model each time it is called \(another initial weights\)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BUGS)
def test_bugs_of_the_user_are_refused_by_name(own: Try, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        own(body)
    assert str(refused.value).startswith("model.build: ")
    assert re.search(r"\bown_\w+:build\b", str(refused.value))
    assert "site-packages" not in str(refused.value)


def test_what_only_a_graph_shows_is_found_before_training(own: Try) -> None:
    line = "y = y * float(x.numpy().size > 0)"
    head = HEAD.replace("        return eval", f"        {line}\n        return eval")
    with pytest.raises(ConfigError, match=r"in a TensorFlow graph: .*numpy.*\n.* in call: y = y") as refused:
        own("return Own(n)", head=head)
    assert "autograph" not in str(refused.value)


STEP_HEAD = (
    HEAD
    + """
import tensorflow as tf
FREE = tf.Variable(2.0)
def compiled(s, n, loss="categorical_crossentropy", optimizer="sgd"):
    m = model(s, n)
    m.compile(optimizer, loss)
    return m
class IntSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 if int(step) < 5 else 0.01
    def get_config(self):
        return {}
class BadSGD(keras.optimizers.SGD):
    def update_step(self, gradient, variable, rate):
        raise RuntimeError("mine")
def small(y, p):
    if p.shape[0] > 20:
        raise ValueError("too many")
    return keras.losses.categorical_crossentropy(y, p)
def with_numpy(y, p):
    return keras.losses.categorical_crossentropy(y, p) * p.numpy().size
def constant(y, p):
    return ops.sum(y, axis=1)
class Seeded(Own):
    def __init__(self, n, fault):
        super().__init__(n, fault)
        self.generator, self.seen = keras.random.SeedGenerator(3), keras.metrics.Mean()
class Held(Own):
    def __init__(self, n, fault):
        super().__init__(n, fault)
        self.held = tf.Variable(1.0)
@tf.function
def nested(y):
    return y + 0.0 * tf.random.normal(tf.shape(y))
"""
)
ONLY_THE_STEP = [
    ("return compiled(s, n, optimizer=keras.optimizers.SGD(IntSchedule()))", "a training step cannot be made: .*\n.*int.step"),
    ("return compiled(s, n, optimizer=BadSGD())", "RuntimeError: mine\n.* in update_step: raise"),
    ("return compiled(s, n, small)", "ValueError: too many\n.* in small: raise"),
    ("return compiled(s, n, with_numpy)", "numpy.*\n.* in with_numpy"),
    ("return compiled(s, n, constant)", "its loss does not depend on any weight"),
    ("return Own(n, 'y + 0.0 * tf.random.normal(tf.shape(y))')", "RandomStandardNormal at .*(\n.*)* in call: return"),
    ("return Own(n, 'y + 0.0 * tf.random.uniform(tf.shape(y)) if training else y')", "has RandomUniform at "),
    ("return Own(n, 'y + 0.0 * tf.random.shuffle(y)')", "has RandomShuffle at "),
    ("return Own(n, 'nested(y)')", "has RandomStandardNormal at "),
    ("return Own(n, 'tf.cond(y[0, 0] > 2, lambda y=y: y + 0.0 * tf.random.shuffle(y), lambda y=y: y)')", "has RandomShuffle at "),
    ("return Own(n, 'y + 0.0 * keras.random.normal(ops.shape(y))')", "draws from keras.random without a seed"),
    ("return Own(n, 'y + 0.0 * FREE')", "uses a variable, at .*self.add_weight.*(\n.*)* in call: return"),
    ("return Held(n, 'y + 0.0 * self.held.assign_add(1.0)')", "uses a variable, at .*self.add_weight"),
    ("return Own(n, 'tf.reshape(tf.numpy_function(lambda v: v, [y], tf.float32), (-1, 3)) * 0.0 + y')", "has PyFunc at "),
    ("return Own(n, 'tf.reshape(tf.py_function(lambda v: v, [y], tf.float32), (-1, 3)) * 0.0 + y')", "has EagerPyFunc at "),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), ONLY_THE_STEP)
def test_what_only_the_step_shows_is_refused_before_training(own: Try, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        own(body, head=STEP_HEAD)
    assert str(refused.value).startswith("model.build: ")
    assert "site-packages" not in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        "return compiled(s, n, optimizer=keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 9), clipnorm=1.0))",
        "return model(s, n, layers.GaussianNoise(0.1), layers.Dropout(0.1), layers.GaussianDropout(0.2))",
        "return Seeded(n, 'y + 0.0 * keras.random.normal(ops.shape(y), seed=self.generator)')",
        "return Seeded(n, 'y + 0.0 * self.seen(y)')",
        "return keras.Sequential([keras.Input(s), layers.LSTM(4), layers.Dense(n, activation='softmax')])",
        "return keras.Sequential([keras.Input(s), layers.Reshape((*s, 1)), layers.RandomFlip(), layers.RandomRotation(0.1),"
        " layers.RandomZoom(0.1), layers.RandomTranslation(0.1, 0.1), layers.RandomContrast(0.1), layers.RandomBrightness(0.1),"
        " layers.Flatten(), layers.Dense(n, activation='softmax')])",
    ],
)  # fmt: skip
def test_steps_that_keras_can_keep_are_taken(own: Try, body: str) -> None:
    own(body, head=STEP_HEAD)


def test_arguments_reach_the_function(own: Try) -> None:
    body = "return model(s, n, layers.Dense(args['width']))"
    narrow, wide = (own(body, width=width) for width in (2, 3))
    assert narrow["model"] != wide["model"]


class TestIdentity:
    def test_equal_models_are_described_alike_whatever_was_built_before(self, own: Try) -> None:
        first = own("return model(s, n, layers.Dropout(0.5))")
        own("return model(s, n)")
        assert own("return model(s, n, layers.Dropout(0.5))") == first

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("return model(s, n, layers.Dense(4, activation='relu'))", "return model(s, n, layers.Dense(4, activation='gelu'))"),
            ("return model(s, n, layers.Dropout(0.5))", "return model(s, n, layers.Dropout(0.4))"),
            ("return model(s, n)", "m = model(s, n); m.set_weights([w * 1.01 for w in m.get_weights()]); return m"),
            ("return model(s, n)", "m = model(s, n); m.set_weights([w[::-1] for w in m.get_weights()]); return m"),
            ("return Own(n, 'y')", "return Own(n, '(y + y) / 2')"),
            ("return model(s, n, layers.Lambda(lambda x: x * 2))", "return model(s, n, layers.Lambda(lambda x: x * 3))"),
            (
                "f = lambda x: x; return model(s, n, layers.Dense(3, activation=f))",
                "f = lambda x: 2 * x; return model(s, n, layers.Dense(3, activation=f))",
            ),
        ],
    )  # fmt: skip
    def test_a_changed_model_is_another_model(self, own: Try, one: str, other: str) -> None:
        assert own(one) != own(other)

    @pytest.mark.parametrize(
        "body",
        [
            "return model(s, n, layers.Dense(3, activation=own_function))",
            "return model(s, n, layers.Dense(3, kernel_regularizer=own_penalty))",
            "return model(s, n, layers.Lambda(own_function))",
            "m = model(s, n); m.layers[0].call = lambda x: ops.reshape(x, (-1, 30)) * 2; return m",
        ],
    )
    def test_functions_of_the_users_own_bring_their_source(self, own: Try, body: str) -> None:
        head = f"{HEAD}\ndef own_function(x): return x + 1\ndef own_penalty(x): return 0 * ops.sum(x)\n"
        assert "source" in own(body, head=head)

    def test_layers_that_the_module_makes_when_it_is_imported_change_nothing(self, own: Try) -> None:
        assert own("return model(s, n)", head=f"{HEAD}\nlayers.Dense(3)\n") == own("return model(s, n)")

    def test_a_comment_changes_nothing_that_keras_says_all_about(self, own: Try) -> None:
        assert own("return model(s, n)") == own("# a comment\nreturn model(s, n)")
        assert "source" not in own("return model(s, n)")
        assert "source" in own("return Own(n)")

    def test_last_bits_of_initial_weights_do_not_count(self, own: Try) -> None:
        nearly = "m = model(s, n); m.set_weights([np.nextafter(w, 9) for w in m.get_weights()]); return m"
        assert own("return model(s, n)") == own(nearly)
