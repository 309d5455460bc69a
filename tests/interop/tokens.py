"""Tokens for a server that asks for credentials."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import time
from pathlib import Path

from support import PATIENCE

# The issuer of JSON Web Tokens shares it with the server.
SECRET = b"a secret of thirty-two bytes or more"


def write_tokens(binary: str, path: Path, **tokens: str) -> None:
    """Writes a file of tokens, one for each principal, in the place of what was there."""
    lines = []
    for principal, credential in tokens.items():
        command, given = [binary, "token", principal], credential + "\n"
        made = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=PATIENCE)
        assert credential not in made.stdout
        lines.append(made.stdout)
    new = path.with_name("new")
    new.write_text("".join(lines))
    new.rename(path)


def bearer(credential: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {credential}"),)


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def token(header: dict | None = None, secret: bytes = SECRET, **claims) -> str:
    """Returns a JSON Web Token, which is good but for what is given. `None` takes a claim away."""
    header = {"alg": "HS256", "typ": "JWT"} | (header or {})
    claims = {"iss": "me", "aud": "tidegate", "sub": "ann", "exp": time.time() + 600.811} | claims
    claims = {name: value for name, value in claims.items() if value is not None}
    signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{base64url(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
