"""The code of the user's own model and data as part of a run: a changed model is another run, and a bug ends at once."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK, REPOSITORY, Finished, RunJob, job_environment

pytestmark = pytest.mark.tf

MODEL = """
import keras
def build(input_shape, num_classes, units=8):
    return keras.Sequential([
        keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(units, activation="relu"),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])
"""
SUBCLASSED = """
import keras
class Own(keras.Model):
    def __init__(self, n):
        super().__init__()
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(n, activation="softmax")
    def call(self, x, training=False):
        return self.dense(self.flatten(x))
def build(input_shape, num_classes):
    return Own(num_classes)
"""
OWN = (*QUICK[:-1], "--train.epochs=1", "--model.build=mine:build")


@pytest.fixture
def run_own(run_job: RunJob, tmp_path: Path) -> Any:
    """Writes `mine.py` and runs the job with flags."""

    def run(text: str, *flags: str, **more: str) -> Finished:
        (tmp_path / "mine.py").write_text(text)
        return run_job("run", *OWN, *flags, env={"PYTHONPATH": str(tmp_path), **more})

    return run


def _outcome(done: Finished) -> tuple[int, str]:
    return done.code, done.event("run.end")["outcome"]


def _commit(folder: Path, run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"out/runs/{run}/COMMIT.json").read_text())
    return content


class TestChangedModel:
    def test_is_a_new_run_where_the_id_is_generated(self, run_own: Any, tmp_path: Path) -> None:
        wider = MODEL.replace("units=8", "units=9")
        assert _outcome(run_own(MODEL)) == (0, "committed")
        assert _outcome(run_own(MODEL)) == (0, "already_committed")
        assert _outcome(run_own(wider)) == (0, "committed")
        assert len(list((tmp_path / "out/runs").iterdir())) == 2

    @pytest.mark.parametrize(
        ("before", "after", "what"),
        [
            (MODEL, MODEL.replace("units=8", "units=9"), "code.model was"),
            (MODEL, MODEL.replace('"relu"', '"gelu"'), "code.model was"),
            (SUBCLASSED, SUBCLASSED.replace("self.flatten(x)", "self.flatten(x) * 2"), "code.source was"),
        ],
    )
    def test_is_refused_under_a_fixed_id(self, run_own: Any, before: str, after: str, what: str) -> None:
        assert run_own(before, "--run.id=mine").code == 0
        refused = run_own(after, "--run.id=mine")
        assert refused.code == 73
        assert what in refused.error

    def test_never_goes_on_from_a_checkpoint_of_the_model_before(
        self, run_own: Any, run_job: RunJob, tmp_path: Path
    ) -> None:
        """The run is stopped by a loss that is not finite after its first checkpoint, and the model is changed then."""
        flags = (
            "--run.id=mine",
            "--checkpoint.interval_seconds=0.001",
            "--train.epochs=300",
            "--train.learning_rate=0.1",
        )
        stopped = run_own(SUBCLASSED, *flags, "--observe.stall_timeout_seconds=0.0001")
        assert stopped.code == 74
        refused = run_own(SUBCLASSED.replace('"softmax")', '"softmax", use_bias=False)'), *flags)
        assert refused.code == 73
        assert "checkpoint.restored" not in [event["event"] for event in refused.events]

    def test_arguments_decide_too(self, run_own: Any, tmp_path: Path) -> None:
        assert run_own(MODEL, "--run.id=a", "--model.args={units: 4}").code == 0
        assert run_own(MODEL, "--run.id=a", "--model.args={units: 5}").code == 73
        assert _commit(tmp_path, "a")["inputs"]["model"]["args"] == {"units": 4}

    def test_is_not_skipped_and_a_comment_is(self, run_own: Any) -> None:
        skip, image = "--run.skip_if_unchanged=true", {"IMAGE": "registry/own@sha256:1"}
        assert _outcome(run_own(MODEL, skip, "--run.id=night-1", **image)) == (0, "committed")
        assert _outcome(run_own(f"# a comment{MODEL}", skip, "--run.id=night-2", **image)) == (0, "skipped")
        assert _outcome(run_own(MODEL.replace("units=8", "units=9"), skip, "--run.id=night-3", **image)) == (
            0,
            "committed",
        )

    def test_does_not_pass_for_a_reproduction(self, run_own: Any, run_job: RunJob, tmp_path: Path) -> None:
        assert run_own(MODEL, "--run.id=mine").code == 0
        env = {"PYTHONPATH": str(tmp_path)}
        assert run_job("reproduce", "mine", "--model.build=mine:build", env=env).code == 0
        (tmp_path / "mine.py").write_text(MODEL.replace("units=8", "units=9"))
        differs = run_job("reproduce", "mine", "--model.build=mine:build", env=env)
        assert differs.code == 73
        assert "other data, settings or code of model.build" in differs.error


def test_attempt_and_commit_say_where_the_code_came_from(run_own: Any, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert run_own(MODEL, "--run.id=mine").code == 0
    [code] = _commit(tmp_path, "mine")["lineage"]["code"]
    assert (code["name"], list(code["files"])) == ("mine:build", ["mine.py"])
    assert set(_commit(tmp_path, "mine")["inputs"]["code"]) == {"model", "model_by_position", "initial_weights"}


def test_records_of_versions_that_did_not_know_the_code_are_taken(run_own: Any, tmp_path: Path) -> None:
    """As 4df85ca wrote them: no `code`, and no `args` among the settings."""
    assert run_own(MODEL, "--run.id=mine").code == 0
    from job.runs.identity import digest_of_inputs

    for name in ("run", "COMMIT"):
        path = tmp_path / f"out/runs/mine/{name}.json"
        record = json.loads(path.read_text())
        del record["inputs"]["code"], record["config"]["model"]["args"]
        record["result_digest"] = digest_of_inputs(record["inputs"])
        path.write_text(json.dumps(record))
    assert _outcome(run_own(MODEL, "--run.id=mine")) == (0, "already_committed")


def test_a_bug_is_in_the_event_the_stored_log_and_the_termination_message(run_own: Any, tmp_path: Path) -> None:
    bug = MODEL.replace("return keras", "return undefined, keras")
    termination = tmp_path / "termination"
    done = run_own(bug, "--run.id=mine", f"--observe.termination_log={termination}")

    assert done.code == 64
    frame = "  mine.py:4 in build: return undefined, keras.Sequential(["
    assert "Traceback" not in done.stderr
    assert frame in done.error
    assert frame in done.event("error")["reason"]
    assert frame in json.loads(termination.read_text())["reason"]
    stored = "".join(path.read_text() for path in (tmp_path / "out/runs/mine").rglob("*.jsonl"))
    assert "undefined, keras.Sequential" in stored
    assert not (tmp_path / "out/runs/mine/run.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.build=mine:biuld",), "mine.py has no function biuld"),
        (("--model.build=mein:build",), "no module mein on the path"),
        (("--model.args={unit: 3}",), "got an unexpected keyword argument 'unit'"),
        (("--model.args={units: wide}",), "model.build: mine:build raised"),
        (("--model.hidden_units=64",), "hidden_units: only of the reference model, not of model.build"),
    ],
)
def test_settings_that_do_not_fit_the_function_are_refused(run_own: Any, flags: tuple[str, ...], message: str) -> None:
    refused = run_own(MODEL, *flags)
    assert refused.code == 64
    assert message in refused.error


_ASKED = "import os, signal\ntry: os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException: {then}\n"
_IN_BUILD = MODEL.replace("    return", "    " + _ASKED.replace("\n", "\n    ") + "return")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            _ASKED.format(then="raise ImportError('initialization failed')") + MODEL, id="becomes another error"
        ),
        pytest.param(_ASKED.format(then="pass") + MODEL, id="is swallowed by an import"),
        pytest.param(_IN_BUILD.format(then="raise ValueError"), id="becomes the model's error"),
        pytest.param(_IN_BUILD.format(then="pass"), id="is swallowed by the model"),
    ],
)
def test_an_interruption_that_does_not_come_through_is_one_all_the_same(
    run_own: Any, tmp_path: Path, text: str
) -> None:
    stopped = run_own(text)
    assert stopped.code == 75, stopped.stderr
    assert stopped.error == "mnist-job: error 75: SIGTERM received; start the same run again"
    assert stopped.event("run.end")["outcome"] == "interrupted"
    assert "train.start" not in [event["event"] for event in stopped.events]
    assert not list((tmp_path / "out").rglob("COMMIT.json"))


def test_scripts_run_works_from_the_users_own_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    command = [str(REPOSITORY / "scripts/run"), *OWN, "--observe.log_format=text"]
    environment = job_environment({"PYTHONPATH": ".", "XDG_CACHE_HOME": str(tmp_path / "cache")})
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"exit code 0$", done.stdout.strip())
    assert (tmp_path / "out/models").is_dir()
