"""The path of the program under test, as in tests/interop."""

from __future__ import annotations

from support import binary

__all__ = ["binary"]
