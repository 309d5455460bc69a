"""Documents name tests, files and one another: all of them must be there. docs/security.md must have every case."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "security.md"

# A test in Rust, with what may stand between its attribute and its name.
RUST_TEST = r"#\[(?:tokio::)?test[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn (\w+)"

# The documents that say which test proves something.
PROVING = [ROOT / "ARCHITECTURE.md"] + [ROOT / "docs" / name for name in ("found.md", "guarantees.md", "protocol.md", "security.md")]

# Where a path that a document shortens may begin: "core/tests/model.rs" is in crates/tidegate-core.
BEGINNINGS = ("", "crates/", "crates/tidegate-")

# A test by its file and name, and the name of a test alone: words with underscores between them, maybe cut off by a star.
TEST_IN_FILE = r"`([\w/.-]+\.(?:py|rs))::(\w+)`"
TEST_ALONE = r"`([a-z]\w*_\w*_\w+\*?|[a-z]\w*_\*)`"
FILE = r"`([\w.-]+/[\w/.-]+\.(?:rs|py|md|toml|txt|svg|json|yaml|service|proto))`"

# A case is a letter and two digits.
CASES = [f"A{number:02}" for number in range(1, 18)] + [f"B{number:02}" for number in range(1, 24)]
CASES += [f"C{number:02}" for number in range(1, 10)] + [f"D{number:02}" for number in range(1, 4)]
CASES += [f"E{number:02}" for number in range(1, 6)] + ["F05", "F08", "F13", "F14"] + [f"G{number:02}" for number in range(1, 6)] + ["G10"]


def known_tests() -> dict[str, list[Path]]:
    """Every test of the repository, in Python and in Rust, and the files that have one of its name."""
    found: dict[str, list[Path]] = {}
    for folder in ("benches", "crates", "examples", "fuzz", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                names = re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
            elif path.suffix == ".rs":
                names = re.findall(RUST_TEST, path.read_text())
            else:
                continue
            for name in names:
                found.setdefault(name, []).append(path.relative_to(ROOT))
    return found


def rows() -> dict[str, str]:
    """The rows of the tables, by their case."""
    lines = DOCUMENT.read_text().splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"\| ([A-Z]\d\d) \|", line))}


def test_every_case_has_its_line():
    assert sorted(rows()) == sorted(CASES)


def test_every_case_names_a_test():
    for case, row in rows().items():
        assert re.search(TEST_IN_FILE, row) or "no test:" in row, f"{case} names no test and does not say why"


def test_every_attack_of_the_suite_is_told():
    text = DOCUMENT.read_text()
    for name, files in known_tests().items():
        if Path("tests/abuse") in files[0].parents:
            assert f"::{name}`" in text, f"{name} is not in {DOCUMENT.name}"


def files(path: str) -> list[Path]:
    """The files of the repository that a document may mean by a path."""
    return [Path(beginning + path) for beginning in BEGINNINGS if (ROOT / (beginning + path)).is_file()]


def items(document: Path) -> list[str]:
    """The items of the lists and the rows of the tables, each in one piece, with all that is not in either."""
    return re.split(r"\n(?=- |\| |\n)", document.read_text())


@pytest.mark.parametrize("document", PROVING, ids=lambda document: document.name)
def test_every_file_and_test_that_proves_something_is_there(document):
    known = known_tests()
    for item in items(document):
        for file in re.findall(FILE, item):
            assert files(file), f"{document.name} names {file}"
        for file, test in re.findall(TEST_IN_FILE, item):
            assert set(files(file)) & set(known.get(test, [])), f"{document.name}: {file} has no test {test}"
        # A test that is named alone is in one of the files that the same item names.
        named = [path for file in re.findall(FILE, item) for path in files(file)]
        for test in re.findall(TEST_ALONE, item):
            if named:
                found = [path for name, paths in known.items() if fnmatch(name, test) for path in paths]
                assert set(named) & set(found), f"{document.name}: no test {test} in {', '.join(map(str, named))}"


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]


@pytest.mark.parametrize("document", documents(), ids=lambda document: str(document.relative_to(ROOT)))
def test_every_document_that_is_linked_is_there(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        linked = document.parent / target if target else document
        assert linked.exists(), f"{document.name} links {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{document.name} links {target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """The anchors of the headings of a document."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
