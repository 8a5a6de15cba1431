"""The table of promises: what it counts, and when it fails a run that has no failed test."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.promises import read_promises

_CONFTEST = """
from tests.promises import Promises

def pytest_configure(config):
    config.addinivalue_line("markers", "security(number): a promise")
    config.pluginmanager.register(Promises({texts}, is_gate={is_gate}))
"""
_TESTS = """
import pytest

@pytest.mark.security("S1")
@pytest.mark.parametrize("number", range(3))
def test_one(number): pass

@pytest.mark.security("S2")
def test_skipped(): pytest.skip("no tool")

@pytest.mark.security("{last}")
def test_last(): assert {holds}
"""


def _run(folder: Path, *flags: str, texts: str, is_gate: bool, last: str, holds: bool = True) -> tuple[int, list[str]]:
    (folder / "conftest.py").write_text(_CONFTEST.format(texts=texts, is_gate=is_gate))
    (folder / "test_it.py").write_text(_TESTS.format(last=last, holds=holds))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags, str(folder)]
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, (done.stderr + done.stdout).splitlines()


_THREE = "{'S1': 'first', 'S2': 'second', 'S3': 'third'}"


def test_a_promise_whose_tests_were_all_skipped_fails_the_whole_run(tmp_path: Path) -> None:
    """Also when the tests ran in other processes; the last line stays pytest's own."""
    code, lines = _run(tmp_path, "-p", "xdist", "-n", "2", texts=_THREE, is_gate=True, last="S3")
    assert code == 1
    assert [line.split() for line in lines if line.startswith("S")] == [
        ["S1", "3", "3", "0", "0", "first"],
        ["S2", "1", "0", "0", "1", "second"],
        ["S3", "1", "1", "0", "0", "third"],
    ]
    assert "no test of S2 ran: the run fails" in lines
    assert lines[-1].startswith("4 passed, 1 skipped")


def test_a_part_of_the_tests_fails_for_its_failures_only(tmp_path: Path) -> None:
    code, lines = _run(tmp_path, texts=_THREE, is_gate=False, last="S3", holds=False)
    assert code == 1
    assert "S3       1       0       1        0  third" in lines
    assert "no test of S2 ran: only a whole run with --full fails for it" in lines


def test_a_number_that_is_no_promise_is_refused(tmp_path: Path) -> None:
    code, lines = _run(tmp_path, texts=_THREE, is_gate=False, last="S33")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: test_it.py::test_last: security('S33') is no promise of security.md" in lines


def test_the_page_has_thirteen_promises() -> None:
    assert list(read_promises()) == [f"S{number}" for number in range(1, 14)]
