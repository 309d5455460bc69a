"""The program under test, where tests/interop has it from."""

from __future__ import annotations

from support import binary

__all__ = ["binary"]
