"""`run.skip_if_unchanged`: a night is skipped only when all that is known of its code and the champion's is equal.

The image's tag is the same in each night here, as with `latest`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY, Finished, RunJob

_TAG = {"IMAGE": "registry/mnist-train:latest"}


def night(run_plain: RunJob, number: int, **environment: str) -> Finished:
    flags = ("--observe.metrics_port=0", "--data.source=digits", "--train.global_batch_size=16", "--train.epochs=2")
    name = f"--run.id=night-{number}"
    done = run_plain(
        "run", *flags, "--run.skip_if_unchanged=true", name, env={"REVISION": "unknown", **_TAG, **environment}
    )
    assert done.code == 0, done.stderr
    return done


def outcome(done: Finished) -> str:
    return str(done.event("run.end")["outcome"])


def change_program(folder: Path) -> None:
    """The program with a line more, before the one of this repository on the path: the working folder comes first there."""
    shutil.copytree(REPOSITORY / "job", folder / "job", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "job/training/evaluation.py").open("a") as file:
        file.write("# other code\n")


def edit_champion(folder: Path, **changed: Any) -> None:
    """The record of the champion, as another program wrote it."""
    path = folder / "out/runs/night-1/COMMIT.json"
    record = json.loads(path.read_text())
    lineage = {name: value for name, value in (record["lineage"] | changed).items() if value is not None}
    path.write_text(json.dumps(record | {"lineage": lineage}))


def test_new_code_under_the_same_tag_is_trained(run_plain: RunJob, tmp_path: Path) -> None:
    assert outcome(night(run_plain, 1)) == "committed"
    assert outcome(night(run_plain, 2)) == "skipped"

    rebuilt = night(run_plain, 3, REVISION="c0ffee")
    assert outcome(rebuilt) == "committed"
    assert rebuilt.event("skip.other_code")["reason"] == "revision was 'unknown', is 'c0ffee'"

    change_program(tmp_path)
    changed = night(run_plain, 4)
    assert outcome(changed) == "committed"
    assert changed.event("skip.other_code")["champion"] == "night-1"
    assert changed.event("skip.other_code")["reason"] == "other program"


def test_champion_that_does_not_say_its_code_costs_one_training(run_plain: RunJob, tmp_path: Path) -> None:
    """As all records before this field: then a new champion says it. Equal weights are no reason to keep the old one."""
    night(run_plain, 1)
    edit_champion(tmp_path, software=None)
    trained = night(run_plain, 2)
    assert outcome(trained) == "committed"
    told = trained.event("skip.unknown_code")
    assert (told["level"], told["champion"]) == ("warning", "night-1")
    assert "does not say its program, packages, system" in told["reason"]
    assert outcome(night(run_plain, 3)) == "skipped"
