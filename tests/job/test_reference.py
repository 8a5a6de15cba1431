"""docs/reference.md says what the schema says. `python -m tests.job.test_reference` writes its table again."""

import re
from pathlib import Path

from job.config import describe_fields
from job.contract import ExitCode

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"
_TABLE = re.compile(r"(<!-- settings: .*? -->\n).*?(<!-- /settings -->)", re.DOTALL)


def make_table() -> str:
    rows = [f"| `{name}` | `{default}` | {description} |" for name, default, description in describe_fields()]
    return "\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def test_settings_table_is_the_schema() -> None:
    assert make_table() in REFERENCE.read_text()


def test_every_exit_code_that_can_happen_is_in_the_table() -> None:
    not_yet = {ExitCode.PEER_LOST, ExitCode.GATE_REFUSED}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", REFERENCE.read_text(), re.MULTILINE)}
    assert documented == {int(code) for code in set(ExitCode) - not_yet}


if __name__ == "__main__":
    REFERENCE.write_text(_TABLE.sub(lambda match: match[1] + make_table() + match[2], REFERENCE.read_text()))
