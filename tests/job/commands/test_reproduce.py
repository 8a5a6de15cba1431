"""A run made again from its COMMIT alone: equal digests, or why not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from job.commands.cli import parse_command_line
from job.commands.reproduce import _to_flag, compare, reproduce, settings_of
from job.config import Config
from job.config_sources import load_config
from job.digests import canonical_json, sha256_hex
from job.errors import ConfigError, ConflictError, IntegrityError, JobError
from job.runs.lineage import checked_out_revision
from job.runs.read import CommittedRun, parse_run
from tests.conftest import QUICK, RunJob

_ENV = {"IMAGE": "registry.example/x@sha256:1", "CHART_VERSION": "0.1.0", "REVISION": "c0ffee"}


@pytest.mark.tf
def test_a_committed_run_is_reproduced_whatever_the_environment_says_now(run_job: RunJob, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = _ENV | {"TMPDIR": str(temporary)}
    made = run_job("run", *QUICK, "--run.id=r", "--run.seed=random", "--model.dropout=0.1", env=env)
    assert made.code == 0, made.stderr
    assert not list(temporary.iterdir()), "TensorFlow leaves a file for each function that it traces"
    commit = json.loads((tmp_path / "out/runs/r/COMMIT.json").read_text())
    assert (commit["lineage"]["revision"], commit["lineage"]["image"]) == ("c0ffee", _ENV["IMAGE"])
    assert commit["lineage"]["chart_version"] == "0.1.0"
    assert commit["config"]["train"]["epochs"] == 2
    assert commit["config_digest"] == sha256_hex(canonical_json(commit["config"]))

    done = run_job("reproduce", "r", "--store.uri", "file:./out", env={"MNIST_TRAIN__EPOCHS": "7"})
    assert done.code == 0, done.stderr
    for name in ("result_digest", "weights_digest", "state_digest"):
        assert f"{commit[name]}: equal" in done.stdout
    assert [path.name for path in (tmp_path / "out/runs").iterdir()] == ["r"]  # made somewhere else

    other = run_job("reproduce", "r", "--data.train_examples=1000", "--to=file:./again", "--store.deadline_seconds=60")
    assert other.code == 73
    assert "run r was not reproduced: result_digest, weights_digest, state_digest differ: other data" in other.error
    assert len(list((tmp_path / "again/runs").iterdir())) == 1

    absent = run_job("reproduce", "r", "--data.source=idx", "--data.uri=/nowhere")
    assert absent.code == 66
    assert "run r was not reproduced: the training ended with 66" in absent.error


def test_a_run_without_a_result_is_refused(run_job: RunJob) -> None:
    done = run_job("reproduce", "nothing")
    assert done.code == 66
    assert "run nothing has no COMMIT" in done.error


def _commit(**changes: Any) -> CommittedRun:
    lineage = {
        **dict.fromkeys(("run", "attempt", "revision", "image", "chart_version", "version", "python"), ""),
        "started": "2026-11-26T00:00:00+00:00",
        "pod": {},
        "machine": "x86_64",
        "instruction_sets": ["avx2"],
        "onednn_max_cpu_isa": None,
        "devices": ["cpu"],
        "packages": {"keras": "3"},
        "compile": "graph",
        "threads": {"intra_op": 2, "inter_op": 2},
    }
    content = {"run": "r", "attempt": "a", "dataset": {"name": "plain"}, "metrics": {"test_accuracy": 0.5}, "files": []}
    digests = {"result_digest": "r", "weights_digest": "w", "state_digest": "s"}
    record = content | digests | {"lineage": lineage | changes.pop("lineage", {})} | changes
    committed = parse_run(json.dumps(record).encode(), "r")
    assert isinstance(committed, CommittedRun)
    return committed


def test_other_hardware_is_named_when_the_weights_differ() -> None:
    now = _commit(weights_digest="v", state_digest="t", lineage={"instruction_sets": ["avx2", "avx512f"]})
    with pytest.raises(
        ConflictError, match=r"weights_digest, state_digest differ: this machine computes other bits: instr"
    ):
        compare(_commit(), now).check(run="r")
    compare(_commit(), _commit(lineage={"instruction_sets": ["avx512f"]})).check(run="r")  # other hardware, equal bits


def test_other_weights_on_the_same_hardware_are_said() -> None:
    with pytest.raises(ConflictError, match="although machine, versions and threads are the same"):
        compare(_commit(), _commit(weights_digest="v")).check(run="r")


def test_a_commit_without_its_settings_is_refused() -> None:
    with pytest.raises(IntegrityError, match="does not say how its run was made: 'config'"):
        settings_of(_commit())


def test_the_revision_of_a_checkout_is_read_without_git(tmp_path: Path) -> None:
    assert checked_out_revision(tmp_path) == ""
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nabc refs/heads/other\ndef refs/heads/main\n")
    assert checked_out_revision(tmp_path) == "def"
    (git / "refs/heads/main").write_text("123\n")
    assert checked_out_revision(tmp_path) == "123"
    (git / "HEAD").write_text("456\n")
    assert checked_out_revision(tmp_path) == "456"


def _store_commit(folder: Path, *, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> None:
    """A COMMIT of run r below `folder`/out, as whoever may write the store can make one."""
    config = Config().model_dump(mode="json")
    config["data"] |= {"source": "digits", **(data or {})}
    config["model"] |= model or {}
    inputs = {"seed": 1, "model": config["model"], "train": config["train"]}
    path = folder / "out/runs/r/COMMIT.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**_commit().record, "config": config, "inputs": inputs}))


_OWN: dict[str, Any] = {"data": {"source": "mine:load", "args": {"file": "a b"}}, "model": {"build": "mine:build"}}
_FLAGS = ("--model.build=mine:build", "--data.source=mine:load", "--data.args={file: a b}")


@pytest.mark.security("S4")
class TestWhatACommitNames:
    def test_is_not_imported_from_the_store_below_the_working_folder(self, run_job: RunJob, tmp_path: Path) -> None:
        _store_commit(tmp_path, data={"source": "out.runs.r.payload:load"})
        (tmp_path / "out/runs/r/payload.py").write_text("open('ran', 'w')\ndef load(): ...")
        done = run_job("reproduce", "r")
        assert (done.code, (tmp_path / "ran").exists()) == (64, False)
        assert "add --data.source=out.runs.r.payload:load" in done.error
        for command in (("reproduce", "r"), ("data", "check")):
            named = run_job(*command, "--data.source=out.runs.r.payload:load")
            assert (named.code, (tmp_path / "ran").exists()) == (64, False)
            assert "out is in the working folder, which is not searched by itself" in named.stderr

    @pytest.mark.parametrize(
        ("named", "missing"),
        [
            (_OWN, "--model.build=mine:build --data.source=mine:load --data.args='{file: a b}'"),
            (
                {"model": {"build": "mine:build", "args": {"width": 3}}},
                "--model.build=mine:build --model.args='{width: 3}'",
            ),
            ({"data": {"source": "idx", "uri": "s3://other/data"}}, "--data.uri=s3://other/data"),
            ({"data": {"source": "idx", "uri": "/a;rm -r b"}}, "--data.uri='/a;rm -r b'"),
            ({"data": {"source": "tfds", "uri": "/home/user"}}, "--data.uri=/home/user"),
            (
                {"data": {"source": "mine:load", "args": {"a": "\x1b[31m\n"}}},
                "--data.source=mine:load --data.args='{a: \"\\e[31m\\n\"}'",
            ),
        ],
    )
    def test_is_refused_with_the_flags_that_name_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], missing: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        _store_commit(tmp_path, **named)
        with pytest.raises(ConfigError) as refused:
            _reproduce()
        assert str(refused.value).endswith(f"if they are what you expect, add {missing}")

    def test_is_used_when_flags_variables_or_the_file_name_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "executable", "/bin/false")  # in the place of the training
        _store_commit(tmp_path, **_OWN)
        file = tmp_path / "settings.yaml"
        file.write_text(json.dumps({**_OWN, "data": {"source": "mine:load"}}))
        assert _reproduce(*_FLAGS) == 1
        assert _reproduce(f"--config={file}", "--data.args={file: a b}") == 1
        assert _reproduce("--model.build=moved:build", *_FLAGS[1:]) == 1
        monkeypatch.setenv("MNIST_DATA__ARGS", "{file: a b}")
        assert _reproduce(*_FLAGS[:2]) == 1
        monkeypatch.setenv("MNIST_DATA__ARGS", "{file: c}")  # the child does not get it: the COMMIT's would be used
        with pytest.raises(ConfigError, match=r"add --data.args='\{file: a b\}'"):
            _reproduce(*_FLAGS[:2])

    @pytest.mark.parametrize(
        ("where", "value"),
        [
            (("inputs", "model", "build"), ["os:system"]),
            (("inputs", "model", "build"), "os.system\x1b[31m"),
            (("inputs", "train"), 3),
            (("inputs", "train", "epochs"), True),
            (("inputs", "train", "epochs"), "1"),
            (("inputs", "seed"), {}),
            (("config", "data", "uri"), "s3://key:secret@bucket"),
            (("config", "data", "source"), None),
            (("config", "cluster", "cpu_replicas"), "many"),
            (("lineage", "threads"), []),
        ],
    )
    def test_is_65_when_no_run_can_have_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[str, ...], value: object
    ) -> None:
        monkeypatch.chdir(tmp_path)
        _store_commit(tmp_path)
        path = tmp_path / "out/runs/r/COMMIT.json"
        record = part = json.loads(path.read_text())
        for name in where[:-1]:
            part = part[name]
        part[where[-1]] = value
        path.write_text(json.dumps(record))
        with pytest.raises(JobError) as refused:
            _reproduce()
        assert refused.value.code == 65
        assert "secret" not in str(refused.value)


def _reproduce(*flags: str) -> int:
    line = parse_command_line(["reproduce", "r", *flags])
    return reproduce(line, load_config(line.settings, config_file=line.options.config))


@pytest.mark.security("S10")
def test_flag_of_a_record_with_credentials_is_not_shown() -> None:
    """Of a run of an older version: a line that is masked in part has no brackets, and is no command."""
    value = {"headers": {"Authorization": "Bearer a1", "Cookie": "sid=a1"}, "n": 1}
    assert _to_flag("data.args", value) == "--data.args=..."
    assert _to_flag("data.args", {"cookie": "chocolate", "n": 1}) == "--data.args='{cookie: chocolate, n: 1}'"
