"""A training that stops making steps ends by itself and says where it hung, in real processes."""

import json
from pathlib import Path

import pytest

from tests.conftest import QUICK, RunJob

pytestmark = pytest.mark.tf

# A layer that sleeps for ever after the first second of training, in Python code or in native code that holds the interpreter.
MODEL = """
import ctypes, time
import keras, tensorflow as tf

started = time.monotonic()

def hang_in_python(x):
    if time.monotonic() - started > 1:
        time.sleep(1000)
    return x

def hang_in_native_code(x):
    if time.monotonic() - started > 1:
        ctypes.PyDLL(None).sleep(1000)
    return x

class Hanging(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        y = tf.py_function(self.function, [x], tf.float32)
        y.set_shape(x.shape)
        return x + tf.stop_gradient(y - x)

    def compute_output_shape(self, shape):
        return shape

def build(function, input_shape, num_classes):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Flatten(),
        Hanging(function),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])

def in_python(input_shape, num_classes):
    return build(hang_in_python, input_shape, num_classes)

def in_native_code(input_shape, num_classes):
    return build(hang_in_native_code, input_shape, num_classes)
"""
FLAGS = (*QUICK, "--train.compile=graph", "--train.epochs=100000", "--observe.stall_timeout_seconds=4")


def test_a_hang_ends_with_74_and_the_stacks_in_the_log(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    termination_log = tmp_path / "termination"
    done = run_job(
        "run", *FLAGS, "--model.build=mine:in_python", f"--observe.termination_log={termination_log}",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip

    assert done.code == 74, done.stderr
    assert any("in hang_in_python" in line for line in done.event("training.stalled")["stacks"])
    assert "no step within 4 s (observe.stall_timeout_seconds)" in done.error
    assert json.loads(termination_log.read_text())["outcome"] == "stalled"
    assert done.event("run.end")["code"] == 74


def test_a_hang_that_holds_the_interpreter_ends_with_1_and_the_stacks_on_stderr(
    run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    done = run_job("run", *FLAGS, "--model.build=mine:in_native_code", env={"PYTHONPATH": str(tmp_path)})

    assert done.code == 1
    assert "in hang_in_native_code" in done.stderr
