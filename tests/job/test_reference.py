"""docs/reference.md and `run --help` say what the schema says. `python -m tests.job.test_reference` writes both again."""

import re

from job.config import describe_fields
from job.contract import ExitCode
from tests.conftest import REPOSITORY

REFERENCE = REPOSITORY / "docs" / "reference.md"
HELP = REPOSITORY / "job" / "settings.txt"
_TABLE = re.compile(r"(<!-- settings: .*? -->\n).*?(<!-- /settings -->)", re.DOTALL)


def make_table() -> str:
    rows = [f"| `{name}` | `{default}` | {description} |" for name, default, description in describe_fields()]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def make_help() -> str:
    lines = [f"  --{name + '=' + default:<46} {description}" for name, default, description in describe_fields()]
    return "\n".join(["settings (flag > MNIST_SECTION__FIELD > --config FILE > default):", *lines]) + "\n"


def test_help_of_run_is_the_schema() -> None:
    assert HELP.read_text() == make_help()


def test_settings_table_is_the_schema() -> None:
    assert make_table() in REFERENCE.read_text()


def test_every_exit_code_that_can_happen_is_in_the_table() -> None:
    not_yet = {ExitCode.PEER_LOST}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", REFERENCE.read_text(), re.MULTILINE)}
    assert documented == {int(code) for code in set(ExitCode) - not_yet}


if __name__ == "__main__":
    HELP.write_text(make_help())
    REFERENCE.write_text(_TABLE.sub(lambda match: match[1] + make_table() + match[2], REFERENCE.read_text()))
