"""A siege for each test, and the figures of all of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from siege import Siege
from required import pytest_runtest_makereport
from support import binary

__all__ = ["binary", "pytest_runtest_makereport"]


@pytest.fixture
def besiege(binary: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Siege]]:
    """Returns a function that makes a siege of a server with given arguments, to enter with `with`."""
    sieges: list[Siege] = []

    def besiege(*arguments: str, **options) -> Siege:
        sieges.append(Siege(binary, *arguments, **options))
        return sieges[-1]

    yield besiege
    for siege in sieges:
        request.node.user_properties += [(name, value) for name, value in siege.figures.items()]


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown" and report.user_properties
    ]
    if not reports:
        return
    terminalreporter.section("figures")
    for report in sorted(reports, key=lambda report: report.nodeid):
        figures = "; ".join(f"{name}: {value}" for name, value in report.user_properties)
        terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {figures}")
