"""The numbered promises of docs/security.md: which tests show each, and the table that ends a full run.

Owns the mark `security`. Does not know what a promise means: its tests do.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "security.md"
_ROW = re.compile(r"^\| (S\d+) \| (.+?) \|$", re.MULTILINE)


def read_promises() -> dict[str, str]:
    """Number and text of each promise, in the order of the page."""
    return dict(_ROW.findall(PAGE.read_text(encoding="utf-8")))


def is_whole_run(config: pytest.Config) -> bool:
    """Whether every test was asked for: only such a run can say that a promise has none."""
    chosen = (config.getoption("keyword"), config.getoption("markexpr"), config.getoption("lf", default=False))
    from_settings = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return bool(config.getoption("--full")) and from_settings and not any(chosen)


class Promises:
    """Counts the outcomes of marked tests; `is_gate` fails the run when a promise has no test that ran."""

    def __init__(self, texts: Mapping[str, str], *, is_gate: bool) -> None:
        self._texts = texts
        self._is_gate = is_gate
        self._counts: dict[str, Counter[str]] = {number: Counter() for number in texts}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The numbers of a test travel with its reports, also from another process."""
        for item in items:
            for number in _numbers(item):
                if number not in self._texts:
                    raise pytest.UsageError(f"{item.nodeid}: security({number!r}) is no promise of {PAGE.name}")
                item.user_properties.append(("security", number))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: where it ran, where it was skipped, or where its fixtures failed."""
        if report.when != "call" and report.outcome == "passed":
            return
        for name, number in report.user_properties:
            if name == "security":
                self._counts[str(number)][report.outcome] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._is_gate and self._unshown() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table; pytest prints its own last line after it."""
        terminalreporter.section("promises of docs/security.md")
        for line in self._lines():
            terminalreporter.write_line(line)

    def _unshown(self) -> list[str]:
        return [number for number, counts in self._counts.items() if not counts["passed"] + counts["failed"]]

    def _lines(self) -> Iterator[str]:
        yield f"{'':4}{'tests':>6}{'passed':>8}{'failed':>8}{'skipped':>9}  promise"
        for number, counts in self._counts.items():
            numbers = f"{counts.total():6}{counts['passed']:8}{counts['failed']:8}{counts['skipped']:9}"
            yield f"{number:4}{numbers}  {self._texts[number]}"
        if self._unshown():
            means = "the run fails" if self._is_gate else "only a whole run with --full fails for it"
            yield f"no test of {', '.join(self._unshown())} ran: {means}"


def _numbers(item: pytest.Item) -> list[str]:
    return sorted({str(number) for mark in item.iter_markers("security") for number in mark.args})
