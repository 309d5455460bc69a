"""docs/security.md says what each attack does and which test proves it: the tests must be there, and the cases too."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "security.md"

# A test in Rust, with what may stand between its attribute and its name.
RUST_TEST = r"#\[(?:tokio::)?test[^\]]*\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn (\w+)"

# A case is a letter and two digits.
CASES = [f"A{number:02}" for number in range(1, 17)] + [f"B{number:02}" for number in range(1, 19)]
CASES += [f"E{number:02}" for number in range(1, 5)] + ["F05", "F08", "F13"] + [f"G{number:02}" for number in range(1, 6)] + ["G10"]


def known_tests() -> dict[str, list[Path]]:
    """Every test of the repository, in Python and in Rust, and the files that have one of its name."""
    found: dict[str, list[Path]] = {}
    for folder in ("crates", "fuzz", "tests"):
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


def test_every_test_that_is_named_is_there():
    known = known_tests()
    for case, row in rows().items():
        named = re.findall(r"`([a-z_0-9/.-]+)::(\w+)`", row)
        assert named or "no test:" in row, f"{case} names no test and does not say why"
        for file, test in named:
            assert Path(file) in known.get(test, []), f"{case}: {file} has no test {test}"


def test_every_attack_of_the_suite_is_told():
    text = DOCUMENT.read_text()
    for name, files in known_tests().items():
        if Path("tests/abuse") in files[0].parents:
            assert f"::{name}`" in text, f"{name} is not in {DOCUMENT.name}"


def test_every_document_that_is_linked_is_there():
    for document in (DOCUMENT, ROOT / "SECURITY.md", ROOT / "docs" / "deployment.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links {target}"
