"""Tokens for a server that asks for credentials."""

from __future__ import annotations

import subprocess
from pathlib import Path


def write_tokens(binary: str, folder: Path, *principals: str) -> None:
    """Writes a file of tokens in which everybody's is their own name twice."""
    command = [binary, "token"]
    made = [
        subprocess.run([*command, name], input=name * 2 + "\n", capture_output=True, text=True, check=True).stdout
        for name in principals
    ]
    (folder / "new").write_text("".join(made))
    (folder / "new").rename(folder / "tokens")


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)
