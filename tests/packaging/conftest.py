"""The path of the program under test, as in tests/interop."""

from __future__ import annotations

from required import pytest_runtest_makereport
from support import binary

__all__ = ["binary", "pytest_runtest_makereport"]
