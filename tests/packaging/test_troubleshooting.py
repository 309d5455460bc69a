"""docs/troubleshooting.md has every exit code and every reason, and the settings and metrics that it names exist.
docs/command-line.md has every exit code too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packages import ROOT

DOCUMENT = ROOT / "docs" / "troubleshooting.md"
COMMAND_LINE = ROOT / "docs" / "command-line.md"


def tables(document: Path) -> dict[str, list[list[str]]]:
    """The rows of the tables in each section of a document, by its title. The first row is the head."""
    sections = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", document.read_text(), re.MULTILINE | re.DOTALL)
    return {
        title: [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        for title, text in sections
    }


TABLES = tables(DOCUMENT)


@pytest.mark.parametrize("document", [DOCUMENT, COMMAND_LINE], ids=lambda document: document.stem)
def test_every_exit_code_is_explained(document):
    source = (ROOT / "crates" / "tidegate-cli" / "src" / "exit.rs").read_text()
    codes = {"0", *re.findall(r"^    \w+ = (\d+),$", source, re.MULTILINE)}
    assert len(codes) > 10
    assert codes <= {row[0] for row in tables(document)["Exit codes"][1:]}


def test_every_reason_is_explained_once():
    source = (ROOT / "crates" / "tidegate" / "src" / "reason.rs").read_text()
    reasons = re.findall(r'"([A-Z][A-Z_]+)",\s*Code::', source)
    assert len(reasons) > 25
    explained = [reason for row in TABLES["Reasons"][1:] for reason in re.findall(r"`([A-Z_]+)`", row[0])]
    assert set(reasons) <= set(explained)
    assert len(explained) == len(set(explained))


def test_every_row_says_what_to_do():
    for rows in TABLES.values():
        for row in rows:
            assert len(row) == len(rows[0]), row
            assert all(cell.strip() for cell in row), row


def test_the_settings_and_metrics_that_it_names_exist():
    text = DOCUMENT.read_text()
    example = (ROOT / "docs" / "tidegate.example.toml").read_text()
    table, settings = "", set()
    for line in example.splitlines():
        if match := re.match(r"\[(.*)\]$", line):
            table = match[1] + "."
        elif match := re.match(r"(\w+) = ", line):
            settings.add(table + match[1])
    sections = {setting.split(".")[0] for setting in settings if "." in setting}
    named = {name for name in re.findall(r"`([a-z][\w.]+)`", text) if name.split(".")[0] in sections and "." in name}
    assert len(named) > 10
    assert named <= settings
    assert {name for name in re.findall(r"`(\w+) = ", text)} <= settings
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    assert all(f"`{name}`" in metrics for name in re.findall(r"`(tidegate_\w+)`", text))
