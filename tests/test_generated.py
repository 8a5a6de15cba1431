"""Every file that is made of the code is up to date, and what people write beside it forgets nothing."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from generators import __main__ as generators
from generators import chart as chart_files
from generators.splice import splice

from job.config import default_values
from job.contract import ExitCode
from job.errors import JobError
from k8s.ends import explain_end
from tests.charts.helm import CHART
from tests.conftest import REPOSITORY

_REFERENCE = REPOSITORY / "docs" / "reference.md"


@pytest.mark.parametrize(
    ("path", "content"),
    generators.make_files().items(),
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_file_is_up_to_date(path: Path, content: str) -> None:
    assert path.read_text("utf-8") == content, "run scripts/generate"


def test_drift_is_named_and_changes_nothing(tmp_path: Path) -> None:
    """In a copy: jobs of other tests record the digest of this program's files meanwhile."""
    copy = shutil.copytree(REPOSITORY, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__", "out"))
    (copy / ".venv").symlink_to(REPOSITORY / ".venv")
    path = copy / "job" / "settings.txt"
    path.write_text(path.read_text("utf-8") + "drift\n", "utf-8")
    before = path.read_bytes()
    command = [str(copy / "scripts" / "generate"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "job/settings.txt: is out of date: run scripts/generate\n")
    assert path.read_bytes() == before


def test_text_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.md: <!-- settings: \.\.\. --> must be there once, found 0"):
        splice(Path("a.md"), "settings", "", text="no marks")


def test_every_setting_is_in_schema_and_defaults() -> None:
    schema, defaults = (
        json.loads((CHART / name).read_text()) for name in ("values.schema.json", "files/defaults.json")
    )
    for name in default_values():
        section, field = name.split(".")
        assert field in schema["properties"][section]["properties"]
        assert field in defaults[section]
        assert schema["properties"][section]["additionalProperties"] is False


def test_every_value_is_described_and_every_description_has_a_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values)
    rows = chart_files.describe_values(CHART)
    assert {name.partition(".")[0] for name, _, _ in rows} == set(values)
    texts = [comment for _, _, comment in rows]
    assert [comment for comment in texts if not comment or texts.count(comment) > 1] == []  # of a neighbour


def test_values_are_short_enough_to_be_read() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) <= 280


@pytest.mark.parametrize("code", ExitCode)
def test_no_exit_code_is_forgotten(code: ExitCode) -> None:
    """In the docs, in the chart, in the client: each says what happened, and all but success what to do."""
    assert code.word
    assert f"| {code.value} | {code.meaning} |" in _REFERENCE.read_text("utf-8")
    assert code.again in ("no", "yes", "may help", "nothing to do")
    assert f"\n| {code.value} " in (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    fail_job = json.loads((CHART / "files" / "exit-codes.json").read_text())["failJob"]
    assert (code.value in fail_job) == (code.again == "no")
    pod = {"status": {"containerStatuses": [{"name": "train", "state": {"terminated": {"exitCode": code.value}}}]}}
    cause = explain_end(pod)
    assert cause.reason == code.word
    assert (cause.action == code.action != "") or code == ExitCode.OK


def test_every_exit_code_but_those_without_an_error_has_its_error() -> None:
    found = {kind.code for kind in JobError.__subclasses__()} | {JobError.code}  # of job/errors.py
    assert set(ExitCode) - found == {ExitCode.OK, ExitCode.STALLED, ExitCode.INTERRUPTED}
