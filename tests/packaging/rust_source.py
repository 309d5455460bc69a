"""Reads Rust well enough to ask about its shape: comments, tests, modules, and the paths between files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# In the order in which they are tried. A lifetime is not the beginning of a character.
TOKENS = re.compile(
    r"""
      (?P<comment> //[^\n]* )
    | (?P<block> /\* )
    | (?P<raw> \b(?:b|c)?r(?P<hashes>\#*)"(?:.|\n)*?"(?P=hashes) )
    | (?P<string> "(?:\\(?:.|\n)|[^"\\])*" )
    | (?P<char> '(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^'\\\n])' )
    """,
    re.VERBOSE,
)
TEST_ONLY = re.compile(r"#\[cfg\((?:test|all\(test\b[^\]]*)\)\]")
PATH = re.compile(r"(?<![\w:])(?:crate|self|super)(?:\s*::\s*\w+)+")


def blank(text: str) -> str:
    """As many lines, and nothing on them."""
    return re.sub(r"[^\n]", " ", text)


def code_of(text: str) -> str:
    """The code alone, each character where it was: comments and the contents of strings are blank."""
    out, at = [], 0
    while match := TOKENS.search(text, at):
        end = match.end()
        if match.lastgroup == "block":
            depth = 1
            while depth and (mark := re.compile(r"/\*|\*/").search(text, end)):
                depth += 1 if mark[0] == "/*" else -1
                end = mark.end()
        out += [text[at : match.start()], blank(text[match.start() : end])]
        at = end
    return "".join(out) + text[at:]


def end_of_item(code: str, at: int) -> int:
    """Behind the item that begins at `at`: its `;` or the brace that closes it."""
    depth = 0
    for index in range(at, len(code)):
        if code[index] in "{([":
            depth += 1
        elif code[index] in "})]":
            depth -= 1
            if depth == 0 and code[index] == "}":
                return index + 1
        elif code[index] in ";," and depth == 0:
            return index + 1
    return len(code)


def without_tests(code: str) -> str:
    """Blanks the items that only tests have. The text is that of `code_of`."""
    while match := TEST_ONLY.search(code):
        end = match.end()
        while attribute := re.compile(r"\s*#\[").match(code, end):
            end = code.index("]", attribute.end()) + 1
        end = end_of_item(code, end)
        code = code[: match.start()] + blank(code[match.start() : end]) + code[end:]
    return code


def leaves(tree: str) -> list[tuple[str, str]]:
    """The paths of a `use` tree, each with the name it gets: `a::{b, c as d}` is [(a::b, b), (a::c, d)]."""
    tree = tree.strip()
    if match := re.match(r"(.*?)\{(.*)\}$", tree, re.DOTALL):
        parts, depth, part = [], 0, ""
        for char in match[2] + ",":
            depth += (char == "{") - (char == "}")
            if char == "," and depth == 0:
                parts.append(part)
                part = ""
            else:
                part += char
        return [(match[1].strip() + path, name) for part in parts if part.strip() for path, name in leaves(part)]
    path, _, name = (piece.strip() for piece in tree.partition(" as "))
    path = path.removesuffix("::self")
    if path == "self":
        return [(path, name)]
    return [(path, name or path.split("::")[-1])]


@dataclass
class Module:
    """One file of a crate."""

    name: tuple[str, ...]
    code: str
    children: set[str] = field(default_factory=set)
    # The names that its `use` items bring in, and whether the item does anything but pass the name on.
    uses: list[tuple[str, str, bool]] = field(default_factory=list)


class Crate:
    """The files that are reached from a root by `mod`, and which of them names which."""

    def __init__(self, root: Path):
        self.modules: dict[tuple[str, ...], Module] = {}
        self._read((), root, root.parent)

    def _read(self, name: tuple[str, ...], path: Path, folder: Path) -> None:
        module = Module(name, without_tests(code_of(path.read_text())))
        self.modules[name] = module
        for child in re.findall(r"\bmod\s+(\w+)\s*;", module.code):
            file = next(file for file in (folder / f"{child}.rs", folder / child / "mod.rs") if file.exists())
            module.children.add(child)
            self._read((*name, child), file, folder / child)
        uses = re.compile(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]*);")
        body = uses.sub(lambda match: blank(match[0]), module.code)
        for public, tree in uses.findall(module.code):
            for path, local in leaves(tree):
                needed = not public or re.search(rf"\b{re.escape(local)}\b", body) is not None
                module.uses.append((path.replace(" ", ""), local, needed))
        module.code = body

    def _absolute(self, module: tuple[str, ...], path: str) -> tuple[str, ...] | None:
        """From the root of the crate, or nothing if it leads out of the crate."""
        first, *rest = re.split(r"\s*::\s*", path)
        if first == "crate":
            return tuple(rest)
        base = list(module)
        if first == "super":
            while first == "super":
                if not base:
                    return None
                base.pop()
                first, *rest = rest or [""]
            return (*base, *filter(None, (first, *rest)))
        if first == "self":
            return (*module, *rest)
        if first in self.modules[module].children:
            return (*module, first, *rest)
        return None

    def _defined_in(self, path: tuple[str, ...], seen: frozenset = frozenset()) -> tuple[str, ...]:
        """The module that has the item, behind what others pass on."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.modules:
                break
        module, rest = path[:length], path[length:]
        if rest and path not in seen:
            for used, local, _ in self.modules[module].uses:
                target = self._absolute(module, used.removesuffix("::*"))
                if target is not None and local == rest[0]:
                    return self._defined_in((*target, *rest[1:]), seen | {path})
                if target in self.modules and local == "*" and self._has_item(target, rest[0]):
                    return self._defined_in((*target, *rest), seen | {path})
        return module

    def _has_item(self, module: tuple[str, ...], name: str) -> bool:
        kinds = "struct|enum|union|trait|type|const|static|fn|mod"
        return re.search(rf"\b(?:{kinds})\s+{name}\b", self.modules[module].code) is not None

    def arrows(self) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
        """The modules that each one names. Its own folder is no arrow: a part may use what stands in `mod.rs`."""
        found = {}
        for name, module in self.modules.items():
            paths = [path for path, _, needed in module.uses if needed]
            paths += PATH.findall(module.code)
            paths += [
                path
                for child in module.children
                for path in re.findall(rf"(?<![\w:]){child}\s*::\s*\w+", module.code)
            ]
            absolute = (self._absolute(name, re.sub(r"\s", "", path).removesuffix("::*")) for path in paths)
            named = {self._defined_in(path) for path in absolute if path is not None}
            found[name] = {other for other in named if name[: len(other)] != other}
        return found

    def circles(self) -> list[set[str]]:
        """The sets of modules that reach each other, by their names."""
        arrows = self.arrows()

        @cache
        def reached(start: tuple[str, ...]) -> frozenset:
            seen, todo = set(), [start]
            while todo:
                for target in arrows[todo.pop()] - seen:
                    seen.add(target)
                    todo.append(target)
            return frozenset(seen)

        circles = []
        for name in arrows:
            circle = {other for other in reached(name) if name in reached(other)}
            if circle and circle not in circles:
                circles.append(circle)
        return [{"::".join(name) for name in circle} for circle in circles]
