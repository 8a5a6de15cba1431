"""Compiled models of the user's own: what is kept of them, and what is refused with which words."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import QUICK, REPOSITORY, RunJob
from tests.job.training.test_recipe import run_script
from tests.workers import commit_of_one_process, digests, making_clusters

pytestmark = [pytest.mark.tf, pytest.mark.timeout(400)]

REFUSALS = """
import warnings
import keras
import numpy as np
from job.config import TrainSection
from job.errors import ConfigError, TrainingError
from job.training.own_recipe import check_recipe, describe_recipe, finite_measure_of, try_metrics
from job.training.recipe import advice_on_rate

class OwnStep(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, activation="softmax")
    def call(self, inputs):
        return self.dense(inputs)
    def train_step(self, data):
        return {}

class OwnLoss(OwnStep):
    train_step = keras.Model.train_step
    def compute_loss(self, *args, **kwargs):
        return 0.0

def model(*args, **compiled):
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    if args or compiled:
        made.compile(*args, **compiled)
    return made

def used():
    made = model("adam", "mse")
    made.optimizer.build(made.trainable_variables)
    return made

losses, sgd = keras.losses, keras.optimizers.SGD
crossentropy = "categorical_crossentropy"

def mean(labels, probabilities):
    return keras.ops.mean(losses.categorical_crossentropy(labels, probabilities))

def broken(labels, probabilities):
    raise RuntimeError("mine")

def check(made, settings=None):
    check_recipe(made, TrainSection(**(settings or {})), name="my:model", num_classes=3)

def refused(message, made, **more):
    try:
        check(made, **more)
    except ConfigError as error:
        assert str(error).startswith("model.build: my:model"), error
        assert message in str(error) and len(str(error).splitlines()[0]) < 500, error
        return
    raise AssertionError(f"taken: {message}")

refused("has a train_step of its own", OwnStep())
refused("has a compute_loss of its own", OwnLoss())
patched = model()
patched.train_step = lambda data: {}
refused("has a train_step of its own", patched)

for name, value in (
    ("optimizer", "adam"), ("learning_rate", 0.1), ("weight_decay", 0.1), ("clip_norm", 1.0), ("schedule", "cosine"),
    ("warmup_steps", 3), ("label_smoothing", 0.1),
):
    refused(f"drop train.{name}, or do not compile the model", model("sgd", crossentropy), settings={name: value})
steps = {"schedule": "step", "step_epochs": 2, "step_factor": 0.2}
refused("drop train.schedule, train.step_epochs, train.step_factor, or do not", model("sgd", crossentropy), settings=steps)

refused("is in use already", used())
refused("is a LossScaleOptimizer, which wraps", model(keras.optimizers.LossScaleOptimizer(sgd()), crossentropy))
refused("has use_ema=True", model(sgd(use_ema=True), crossentropy))
refused("which Keras cannot do under", model(sgd(gradient_accumulation_steps=2), crossentropy))
both = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(sgd()))
refused("is a MultiOptimizer, which wraps", model(both, crossentropy))
refused("has a function as learning rate", model(sgd(lambda: 0.1), crossentropy))

refused("compiled without a loss", model("sgd"))
refused("several losses", model("sgd", [crossentropy]))
refused("loss_weights", model("sgd", crossentropy, loss_weights=0.5))
refused("cannot be made or called", model("sgd", "no_such_loss"))
refused("RuntimeError: mine", model("sgd", broken))
refused("from_logits=True", model("sgd", losses.CategoricalCrossentropy(from_logits=True)))
refused("from_logits=True", model("sgd", losses.SparseCategoricalCrossentropy(from_logits=True)))
refused("reduction='sum'", model("sgd", losses.CategoricalCrossentropy(reduction="sum")))
refused("ignore_class", model("sgd", losses.SparseCategoricalCrossentropy(ignore_class=1)))
refused("one loss for each example [N], not their mean", model("sgd", mean))

metrics = keras.metrics
refused("metric per_class has 3 values", model("sgd", crossentropy, metrics=[metrics.F1Score(name="per_class")]))
refused("received a/b", model("sgd", crossentropy, metrics=[metrics.AUC(name="a/b")]))
refused("received auc", model("sgd", crossentropy, metrics=[metrics.AUC(name="auc")]), settings={"metrics": ("auc",)})
refused("received x, x", model("sgd", crossentropy, metrics=[metrics.AUC(name="x"), metrics.Precision(name="x")]))
refused("a BinaryAccuracy is called accuracy", model("sgd", crossentropy, metrics=[metrics.BinaryAccuracy(name="accuracy")]))
refused("cannot be computed", model("sgd", crossentropy, metrics=[metrics.Recall(name="recall"), broken]))

refused("give compile one list of metrics", model("sgd", crossentropy, metrics={"dense": ["accuracy"]}))

# On predictions of its own, a metric must be a finite number: before the training, and while it goes on.
class Nan(metrics.Metric):
    def update_state(self, y, p, sample_weight=None):
        pass
    def result(self):
        return float("nan")

with_nan, trial = model("sgd", crossentropy, metrics=[Nan(name="ratio")]), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
check(with_nan)
try:
    try_metrics(with_nan, trial, np.array([0, 1, 2, 0]), name="my:model", num_classes=3)
except ConfigError as error:
    assert str(error).startswith("model.build: my:model") and "metric ratio is nan" in str(error), error
else:
    raise AssertionError("taken: nan")
try:
    finite_measure_of(with_nan, num_classes=3)(trial, np.array([0, 1, 2, 0]))
except TrainingError as error:
    assert "metric ratio is nan" in str(error), error
else:
    raise AssertionError("taken: nan")
f1 = model("sgd", crossentropy, metrics=[metrics.F1Score(average="macro", name="f1")])
try_metrics(f1, trial, np.arange(6) % 3, name="m", num_classes=3)

# Keras warns that a lambda could not be read back, which nobody wants to.
with warnings.catch_warnings(action="error"):
    described = describe_recipe(model("sgd", lambda y, p: losses.categorical_crossentropy(y, p)))
assert described["loss"]["class_name"] == "__lambda__"

for compiled, advice in ((model(), "lower train.learning_rate"), (model("sgd", crossentropy), "learning rate of your optimizer")):
    assert advice in advice_on_rate(compiled)

for loss in (
    crossentropy, "crossentropy", "sparse_categorical_crossentropy", "mse", "kl_divergence",
    losses.CategoricalFocalCrossentropy(),
    losses.CategoricalCrossentropy(label_smoothing=0.1), losses.SparseCategoricalCrossentropy(), "binary_crossentropy",
    lambda labels, probabilities: losses.categorical_crossentropy(labels, probabilities),
    lambda labels, probabilities: losses.sparse_categorical_crossentropy(labels, probabilities),
):
    check(model("sgd", loss, metrics=["accuracy"]), settings={"class_weights": "balanced"})
check(model())
check(model(), settings={"optimizer": "adam"})
print("refused")
"""


def test_what_would_be_ignored_is_refused_with_its_reason_and_the_rest_is_taken() -> None:
    assert run_script(REFUSALS).endswith("refused\n")


def test_the_example_of_the_document_is_taken() -> None:
    [example] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "training.md").read_text(), re.DOTALL)
    script = f"""
{example}
from job.config import TrainSection
from job.training.own_recipe import check_recipe, metric_names
model = small_net((8, 8), 10, rate=0.02)
check_recipe(model, TrainSection(), name="mine:small_net", num_classes=10)
print(type(model.optimizer).__name__, metric_names(model))
"""
    assert run_script(script).endswith("AdamW ['f1']\n")


KEPT = """
import keras, json, numpy as np, tensorflow as tf
from job.digests import canonical_json
from job.training.own_recipe import describe_recipe, loss_of, measure_of

labels = np.arange(2500) % 3
probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 2500).astype(np.float32)
one_hot = np.eye(3, dtype=np.float32)[labels]

def model(loss, **more):
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    made.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.1, 7), clipnorm=2.0), loss, **more)
    return made

focal, sparse = keras.losses.CategoricalFocalCrossentropy(), keras.losses.SparseCategoricalCrossentropy()
for loss, y in ((focal, one_hot), (sparse, labels)):
    ours = loss_of(model(loss), num_classes=3)(tf.constant(one_hot), tf.constant(probabilities)).numpy()
    assert ours.shape == (2500,)
    np.testing.assert_allclose(ours.mean(), float(loss(y, probabilities)), rtol=1e-5)

# The metrics are Keras' own, on all examples at once or in parts; asked twice, they start from nothing.
for loss, y, metric in (
    (focal, one_hot, keras.metrics.F1Score(average="macro", name="f1")),
    (focal, one_hot, keras.metrics.AUC(multi_label=True, name="f1")),
    (sparse, labels, keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="f1")),
):
    fresh = type(metric).from_config(metric.get_config())
    fresh.update_state(y, probabilities)
    measure = measure_of(model(loss, metrics=["accuracy", metric]), num_classes=3)
    for _ in range(2):
        np.testing.assert_allclose(measure(probabilities, labels)["f1"], float(fresh.result()), rtol=2e-6)
    assert set(measure(probabilities, labels)) == {"f1"}, "accuracy is the job's own"

# The same in every process and however often it was made, and JSON.
made = [describe_recipe(model(focal, metrics=["accuracy", keras.metrics.AUC(name="auc")])) for _ in range(2)]
assert canonical_json(made[0]) == canonical_json(made[1])
assert made[0]["optimizer"]["config"]["learning_rate"]["config"]["decay_steps"] == 7
assert made[0]["metrics"] == ["auc"] and made[0]["loss"]["class_name"] == "CategoricalFocalCrossentropy"
other = describe_recipe(model(keras.losses.CategoricalFocalCrossentropy(gamma=3.0)))
assert other["loss"] != made[0]["loss"]
assert describe_recipe(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])) == {}
print("kept")
"""


def test_loss_metrics_and_description_are_those_of_keras() -> None:
    assert run_script(KEPT).endswith("kept\n")


MINE = """
import keras

SHARED = keras.optimizers.Adam()


def build(input_shape, num_classes, smoothing=0.1, optimizer=None):
    model = keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(num_classes, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=SHARED if optimizer == "shared" else keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.0, 300, warmup_target=0.01, warmup_steps=30), global_clipnorm=0.5
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=smoothing),
        metrics=["accuracy", keras.metrics.AUC(multi_label=True), keras.metrics.F1Score(average="macro", name="f1")],
    )
    return model
"""
OWN = ("--train.optimizer=sgd", "--train.learning_rate=0.01", "--model.build=mine:build")
"""The optimizer of QUICK would be refused beside a compiled model."""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_compiled_model_trains_as_it_says_and_is_recorded(run_job: RunJob, mine: Path) -> None:
    done = run_job("run", *QUICK, *OWN, "--run.id=r", "--train.metrics=top_3_accuracy")
    assert done.code == 0, done.stderr
    assert done.event("model.built")["optimizer"] == "AdamW"
    ended = done.event("epoch.end")
    assert set(ended["metrics"]) == {"top_3_accuracy", "auc", "f1"}
    assert 0 < ended["learning_rate"] < 0.01
    commit = json.loads((mine / "out/runs/r/COMMIT.json").read_text())
    assert commit["inputs"]["code"]["recipe"]["optimizer"]["config"]["global_clipnorm"] == 0.5
    assert {f"test_{name}": value for name, value in ended["metrics"].items()}.items() <= commit["metrics"].items()
    [metrics] = (mine / "out").rglob("metrics.json")
    assert json.loads(metrics.read_text())["test"]["metrics"] == ended["metrics"]
    assert run_job("verify", "--run", "r").code == 0
    assert "test f1" in next((mine / "out").rglob("report.html")).read_text()
    other = run_job(
        "run", *QUICK, *OWN, "--run.id=r", "--train.metrics=top_3_accuracy", "--model.args={smoothing: 0.2}"
    )
    assert other.code == 73, "another loss is another run"


def test_optimizer_beside_the_settings_and_one_of_the_module_are_refused(run_job: RunJob, mine: Path) -> None:
    beside = run_job("run", *QUICK, "--model.build=mine:build")
    assert beside.code == 64
    assert "drop train.optimizer, train.learning_rate, or do not compile the model" in beside.error
    assert not (mine / "out").exists() or not list((mine / "out").rglob("run.json"))
    unknown = run_job("run", *QUICK, *OWN, "--promotion.metric=f2")
    assert unknown.code == 64
    assert "a metric that model.build compiles its model with (auc, f1), received 'f2'" in unknown.error
    shared = run_job("run", *QUICK, *OWN, "--model.args={optimizer: shared}")
    assert shared.code == 64
    assert re.search(
        r"mine:(\w+): .* made before mine:\1 was called; make the optimizer inside the function", shared.error
    )


SETTINGS = (
    *(
        "--train.optimizer=adamw",
        "--train.learning_rate=0.01",
        "--train.schedule=warmup-cosine",
        "--train.warmup_steps=30",
    ),
    *("--train.label_smoothing=0.1", "--train.class_weights=balanced", "--train.clip_norm=0.5"),
    *("--train.metrics=top_3_accuracy,auc,f1_macro", "--train.epochs=3"),
)


@pytest.mark.parametrize("flags", [SETTINGS, (*OWN, "--train.epochs=3")], ids=["settings", "compiled"])
def test_two_workers_are_two_replicas_bit_for_bit(flags: tuple[str, ...], tmp_path: Path, mine: Path) -> None:
    alone = commit_of_one_process(tmp_path, *flags)
    with making_clusters(tmp_path) as clusters:
        cluster = clusters(2, *flags)
        (cluster.folder / "mine.py").write_text(MINE)
        processes = cluster.start_all()
        assert [process.wait() for process in processes] == [0, 0], processes[0].stderr[-2000:]
    assert digests(cluster.commit) == digests(alone)
    assert cluster.commit["metrics"] == alone["metrics"]
