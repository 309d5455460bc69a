"""The program under test, where tests/python has it from."""

from __future__ import annotations

from support import binary

__all__ = ["binary"]
