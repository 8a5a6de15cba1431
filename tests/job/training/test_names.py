"""Names by position: a build that makes other layers too, each time another number of them, is the same model and resumes."""

import signal
from pathlib import Path

import pytest

from tests.conftest import QUICK, RunJob
from tests.job.test_resume import run_until

pytestmark = pytest.mark.tf

HEAD = """
import functools, os
import keras
from keras import layers

def extra(number=None):
    for _ in range(int(os.environ["EXTRA"]) if number is None else number):
        keras.Sequential([keras.Input((4,)), layers.Flatten(), layers.Rescaling(2.0), layers.BatchNormalization()])

def body(last):
    return [layers.Flatten(), layers.BatchNormalization(), layers.Dense(8), layers.Dropout(0.1, seed=1), last]
"""
SEQUENTIAL = """
def build(s, n):
    extra()
    return keras.Sequential([keras.Input(s), *body(layers.Dense(n, activation="softmax"))])
"""
FUNCTIONAL = """
def build(s, n):
    extra()
    x = keras.Input(s)
    y = layers.Flatten()(layers.Rescaling(1.0)(x))
    extra(1)
    left, right = layers.BatchNormalization()(y), layers.BatchNormalization()(y)
    extra()
    return keras.Model(x, layers.Dense(n, activation="softmax")(layers.Concatenate()([right, left])))
"""
SUBCLASSED = """
class Own(keras.Model):
    def __init__(self, n):
        super().__init__()
        extra()
        self.body = keras.Sequential(body(layers.Dense(n, activation="softmax")))
    def call(self, x, training=False):
        return self.body(x, training=training)
def build(s, n):
    return Own(n)
"""
COMPILED = """
def build(s, n):
    extra()
    for _ in range(int(os.environ["EXTRA"])):
        keras.optimizers.Adam()
    model = keras.Sequential([keras.Input(s), *body(layers.Dense(n, activation="softmax"))])
    model.compile(keras.optimizers.Adam(), "categorical_crossentropy")
    return model
"""
ONCE_A_PROCESS = """
@functools.cache
def look_once():
    extra()
def build(s, n):
    look_once()
    return keras.Sequential([keras.Input(s), *body(layers.Dense(n, activation="softmax"))])
"""
NAMED = """
def build(s, n):
    extra()
    last = layers.Dense(n, activation="softmax", name="dense_7")
    return keras.Sequential([keras.Input(s), layers.Flatten(name="flatten_3"), layers.BatchNormalization(), last], name="m_1")
"""
NESTED = """
def build(s, n):
    extra()
    inner = keras.Sequential(body(layers.Dense(4)))
    extra(2)
    return keras.Sequential([keras.Input(s), inner, layers.Dense(n, activation="softmax")])
"""
MODELS = {
    "sequential": SEQUENTIAL,
    "functional": FUNCTIONAL,
    "subclassed": SUBCLASSED,
    "compiled": COMPILED,
    "once a process": ONCE_A_PROCESS,
    "named": NAMED,
    "nested": NESTED,
}
_SLOW = {"functional", "named", "nested", "subclassed"}
FLAGS = (
    *QUICK[:-1],
    "--train.epochs=20",
    "--train.learning_rate=0.01",
    "--model.build=mine:build",
    "--promotion.enabled=false",
    "--run.id=r",
)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.full] if kind in _SLOW else []) for kind in MODELS]
)
def test_run_resumes_when_a_build_makes_another_number_of_other_layers(
    run_job: RunJob, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ("--train.optimizer", "--train.learning_rate")  # of a compiled model
    flags = [flag for flag in FLAGS if kind != "compiled" or not flag.startswith(recipe)]
    (tmp_path / "mine.py").write_text(HEAD + MODELS[kind])

    monkeypatch.setenv("EXTRA", "2")
    named = {"PYTHONPATH": str(tmp_path)}
    code, _ = run_until(tmp_path, lambda event: event["event"] == "epoch.end", flags=flags, signals=[signal.SIGTERM])
    assert code == 75
    done = run_job("run", *flags, env={"EXTRA": "0"} | named)
    assert done.code == 0, done.stderr
    assert done.event("checkpoint.restored")["step"] > 0
    reproduced = run_job("reproduce", "r", "--model.build=mine:build", env={"EXTRA": "1"} | named)
    assert reproduced.code == 0, reproduced.error
    again = run_job("run", *flags, env={"EXTRA": "3"} | named)
    assert again.event("run.end")["outcome"] == "already_committed"
