"""Rules for every source file: no circles of files, no `unsafe`, and documentation that begins with a noun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rust_source import ROOT, Crate, code_of

MEMBERS = sorted(
    manifest.parent
    for folder in ("crates", "benches", "tests", "examples", "fuzz")
    for manifest in (ROOT / folder).glob("**/Cargo.toml")
    if "target" not in manifest.relative_to(ROOT).parts
)

# The circles that there are: files of one crate that name each other, on whatever way around. A new one needs a reason
# here. A walk over a stream has a part whose methods see the whole walk: a move would split one state machine in two.
CIRCLES = {"tidegate-checker: check::conflated check::walk"}

# Documentation that opens with a pronoun hides the noun that carries it.
OPENERS = re.compile(r"(?:What|Who|Whom|Those|Whoever|Whose)\b")


def package(member: Path) -> str:
    return re.search(r'^name = "(.*)"', (member / "Cargo.toml").read_text(), re.MULTILINE)[1]


def sources(member: Path) -> list[Path]:
    """The Rust files of a member, without those of members inside its folder."""
    inner = [other for other in MEMBERS if member in other.parents]
    return [
        path
        for path in sorted(member.rglob("*.rs"))
        if not any(other in path.parents for other in inner) and "target" not in path.relative_to(member).parts
    ]


# ===== Circles =====


def circles() -> set[str]:
    found = set()
    for member in MEMBERS:
        for root in (member / "src" / "lib.rs", member / "src" / "main.rs"):
            if root.exists():
                name = package(member)
                found |= {f"{name}: {' '.join(sorted(circle))}" for circle in Crate(root).circles()}
    return found


def test_there_is_no_circle_of_files_but_the_listed():
    found = circles()
    assert not found - CIRCLES, "a new circle: move the word that ties it to a file of its own"
    assert not CIRCLES - found, "these circles are gone, or have other files: bring the list up to date"


@pytest.fixture
def crate(tmp_path):
    def write(**files: str) -> list[set[str]]:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.rs"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return Crate(tmp_path / "lib.rs").circles()

    return write


def test_a_circle_is_found_on_every_way_to_name_a_file(crate):
    for back in (
        "use crate::a::A;",
        "use crate::{b::B, a::{self as other, A}};",
        "use super::a;",
        "fn f() -> crate::a::A { todo!() }",
        "use crate::Face;",
        "use super::Face;",
        "use crate::Other;",
        "macro_rules! m { () => { $crate::a::A } }",
    ):
        found = crate(
            lib="mod a; mod b; pub use a::A as Face; pub use a::*; pub use b::B;",
            a="use crate::b; pub struct A; pub struct Other;",
            b=f"{back} pub struct B;",
        )
        assert found == [{"a", "b"}], back


def test_a_folder_and_its_parts_are_no_circle(crate):
    found = crate(lib="mod a;", a__mod="mod part; use part::Part; pub struct A;", a__part="use super::A; pub struct Part;")
    assert found == []


def test_tests_and_comments_and_texts_name_nothing(crate):
    for back in (
        "#[cfg(test)] mod tests { use crate::a::A; fn f() {} }",
        "#[cfg(test)] #[allow(unused)] fn f(a: [u8; 2]) { crate::a::f(a) }",
        "// crate::a::A\n/* crate::a::A /* */ crate::a::A */",
        "const A: &str = \"crate::a::A\"; const B: &str = r#\"\"crate::a::A\"#; const C: char = '\"';",
    ):
        assert crate(lib="mod a; mod b;", a="use crate::b::B;", b=f"{back} pub struct B;") == [], back


# ===== unsafe =====

# The one place, in the program and in no library: the bindings of the allocator.
UNSAFE = {Path("crates/tidegate-cli/src/memory.rs")}


def test_no_library_has_unsafe_code():
    found = {
        path.relative_to(ROOT)
        for path in (ROOT / "crates").rglob("*.rs")
        if re.search(r"\bunsafe\b", code_of(path.read_text()))
    }
    assert found == UNSAFE


def test_the_workspace_denies_unsafe_code():
    manifest = (ROOT / "Cargo.toml").read_text()
    assert re.search(r'^unsafe_code = "deny"', manifest, re.MULTILINE)
    for member in MEMBERS:
        if member.parent == ROOT / "crates":
            assert "[lints]\nworkspace = true" in (member / "Cargo.toml").read_text(), member.name


# ===== Documentation =====


def first_lines(path: Path) -> list[tuple[int, str]]:
    """The first line of each piece of documentation, with its number."""
    found, before = [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = re.match(r"""\s*(//[/!]|/\*[*!]|#!?\[doc = r?#?")(?!/) ?(.*)""", line)
        if match and match[1] != before:
            found.append((number, match[2]))
        before = match[1] if match else None
    return found


def test_documentation_opens_with_a_noun():
    opened = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for member in MEMBERS
        for path in sources(member)
        for number, line in first_lines(path)
        if OPENERS.match(line)
    ]
    assert not opened, "begin with the noun that the sentence is about"
