"""A training that stops making steps ends by itself and says where it hung, in real processes."""

import json
import threading
from pathlib import Path

import pytest

from job.observe.phases import Phases
from job.training.watchdog import Watchdog
from tests.conftest import QUICK, RunJob

# A layer that sleeps for ever: after some steps in Python code or in native code that holds the interpreter, or when evaluating.
MODEL = """
import ctypes, time
import keras, tensorflow as tf
import job.training.export, job.training.keras_workload, job.training.own_model, job.training.trial, job.training.watchdog

# Calls of Python are refused before training; here they stand for whatever else may hang in a step.
job.training.own_model.check_graph = job.training.trial.check_graph = lambda *given, **named: None
job.training.keras_workload.check_graphs = job.training.export.check_graphs = lambda folder: None
job.training.watchdog.LAST_NET_SECONDS = 5  # an hour
calls = batches = 0

def hang_in_python(x):
    count()
    if calls > 100:
        time.sleep(1000)
    return x

def hang_in_native_code(x):
    count()
    if calls > 100:
        ctypes.PyDLL(None).sleep(1000)
    return x

def count():
    global calls
    calls += 1

def hang_at_once(x):
    if len(x) > 8:  # so many are tried before training
        time.sleep(1000)
    return x

def hang_when_evaluated(x):
    global batches
    batches += len(x) > 8
    if batches > 8:  # fewer are asked before training, when the export is tried
        time.sleep(1000)
    return x

def work(x):
    return x

class Hanging(keras.layers.Layer):
    def __init__(self, train, evaluate):
        super().__init__()
        self.functions = {True: train, False: evaluate}

    def call(self, x, training=False):
        y = tf.py_function(self.functions[bool(training)], [x], tf.float32)
        y.set_shape(x.shape)
        return x + tf.stop_gradient(y - x)

    def compute_output_shape(self, shape):
        return shape

def build(input_shape, num_classes, *, train=work, evaluate=work):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Flatten(),
        Hanging(train, evaluate),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])

def in_python(input_shape, num_classes):
    return build(input_shape, num_classes, train=hang_in_python)

def in_native_code(input_shape, num_classes):
    return build(input_shape, num_classes, train=hang_in_native_code)

def while_compiling(input_shape, num_classes):
    return build(input_shape, num_classes, train=hang_at_once)

def while_evaluating(input_shape, num_classes):
    return build(input_shape, num_classes, evaluate=hang_when_evaluated)
"""
FLAGS = (*QUICK, "--train.compile=graph", "--train.epochs=100000")


@pytest.mark.tf
@pytest.mark.parametrize(
    ("function", "seconds", "words", "frame"),
    [
        ("in_python", 4, "no step within 4 s while training (observe", "in hang_in_python"),
        ("while_compiling", 1.5, "no step within 6 s while compiling (4 times observe", "in hang_at_once"),
        ("while_evaluating", 4, "no step within 4 s while evaluating (observe", "in hang_when_evaluated"),
    ],
)
def test_a_hang_ends_with_74_and_the_stacks_in_the_log(
    run_job: RunJob, tmp_path: Path, function: str, seconds: float, words: str, frame: str
) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    termination_log = tmp_path / "termination"
    done = run_job(
        "run", *FLAGS, f"--observe.stall_timeout_seconds={seconds}", f"--model.build=mine:{function}",
        f"--observe.termination_log={termination_log}", env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip

    assert done.code == 74, done.stderr
    assert any(frame in line for line in done.event("training.stalled")["stacks"])
    assert words in done.event("training.stalled")["reason"]
    assert words in done.error
    assert json.loads(termination_log.read_text())["outcome"] == "stalled"
    assert done.event("run.end")["code"] == 74


@pytest.mark.tf
def test_a_hang_that_holds_the_interpreter_ends_with_1_and_the_stacks_on_stderr(
    run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    flags = (*FLAGS, "--observe.stall_timeout_seconds=4", "--model.build=mine:in_native_code")
    done = run_job("run", *flags, env={"PYTHONPATH": str(tmp_path)})

    assert done.code == 1
    assert "in hang_in_native_code" in done.stderr


class TestPhases:
    """The watchdog alone, on a real clock, with a time-out of 0.4 s."""

    TIMEOUT_SECONDS = 0.4

    def _watch(self, work: object, *, phase: str, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
        """What the watchdog says about `work`, a list of (seconds to sleep, phase or beat)."""
        phases, reasons, stalled = Phases(), [], threading.Event()

        def on_stall(reason: str, stacks: str) -> None:
            assert "_watch" in stacks
            reasons.append(reason)
            stalled.set()

        watchdog = Watchdog(timeout_seconds=timeout_seconds, phases=phases, on_stall=on_stall)
        phases.switch(phase)
        with watchdog.watching():
            for seconds, then in work:  # type: ignore[attr-defined]
                stalled.wait(seconds)
                phases.beat() if then == "beat" else phases.switch(then)
        return reasons[0] if stalled.is_set() else ""

    def test_two_phases_are_never_counted_together(self) -> None:
        turns = [(0.25, name) for name in ("evaluate", "checkpoint", "train") * 3]
        assert self._watch(turns, phase="train", timeout_seconds=1.5) == ""

    def test_a_long_evaluation_goes_on_while_its_batches_do(self) -> None:
        assert self._watch([(0.25, "beat")] * 9, phase="evaluate", timeout_seconds=1.5) == ""

    @pytest.mark.parametrize(
        ("phase", "word"), [("train", "training"), ("evaluate", "evaluating"), ("checkpoint", "saving")]
    )
    def test_reason_names_the_phase(self, phase: str, word: str) -> None:
        reason = self._watch([(60, "beat")], phase=phase)
        assert reason.startswith(f"no step within 0.4 s while {word} (observe.stall_timeout_seconds); the stacks")

    def test_compiling_has_an_allowance_of_its_own(self) -> None:
        assert self._watch([(3.0, "train")], phase="compile", timeout_seconds=1.5) == ""
        reason = self._watch([(60, "train")], phase="compile")
        assert reason.startswith("no step within 1.6 s while compiling (4 times observe.stall_timeout_seconds)")
