"""TLS and tokens, with grpcio and with the command line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support import (
    CHANNEL_OPTIONS,
    PATIENCE,
    Client,
    Server,
    assert_status,
    make_certificate,
    new_event,
    payloads,
    refused,
)
from tokens import write_tokens

TOKEN = "a-token-that-is-long-and-random"

RULES = """
[[rule]]
principals = ["ann"]
publish = { allow = ["orders.>"] }
subscribe = { allow = ["orders.*", "orders.*.>"] }
"""


class SecureClient(Client):
    """The generated stubs on one TLS connection, with a token or without."""

    def __init__(self, address: str, certificate: bytes, token: str | None = None) -> None:
        port = address.rsplit(":", 1)[1]
        credentials = grpc.ssl_channel_credentials(certificate)
        if token is not None:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        super().__init__(channel=grpc.secure_channel(f"localhost:{port}", credentials, options=CHANNEL_OPTIONS))


@pytest.fixture
def folder(binary: str, tmp_path: Path) -> Path:
    """Writes a certificate for localhost, Ann's token, and the rules for her."""
    make_certificate(tmp_path)
    write_tokens(binary, tmp_path / "tokens", ann=TOKEN, bob="another")
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path


@pytest.fixture
def secure(binary: str, folder: Path) -> Iterator[Server]:
    files = {"tls-certificate": "tls.crt", "tls-key": "tls.key"}
    files |= {"auth-tokens": "tokens", "auth-rules": "rules.toml"}
    arguments = [f"--{flag}={folder / name}" for flag, name in files.items()]
    with Server(binary, *arguments) as server:
        yield server


def test_grpcio_speaks_tls_with_a_token(secure, folder):
    certificate = (folder / "tls.crt").read_bytes()
    ann = SecureClient(secure.address, certificate, TOKEN)
    stream = ann.subscribe("orders.>", client_id="ann")
    ann.publish(*(new_event("orders.eu", b"%d" % number) for number in range(100)))
    assert payloads(stream.take(100)) == [b"%d" % number for number in range(100)]

    denied = grpc.StatusCode.PERMISSION_DENIED
    with refused("NOT_ALLOWED", "events[0].topic", denied):
        ann.publish(new_event("news.x"))
    with refused("NOT_ALLOWED", "filters[0]", denied):
        ann.subscribe(">")
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    with refused("CREDENTIALS_MISSING", code=unauthenticated):
        SecureClient(secure.address, certificate).publish(new_event("orders.eu"))
    with refused("CREDENTIALS_INVALID", code=unauthenticated):
        SecureClient(secure.address, certificate, "wrong").subscribe("orders.eu")
    ann.close()


def test_withdrawn_token_ends_its_stream_with_a_position(secure, folder, binary):
    ann = SecureClient(secure.address, (folder / "tls.crt").read_bytes(), TOKEN)
    stream = ann.subscribe("orders.>")
    ann.publish(new_event("orders.eu", b"last"))
    assert payloads(stream.take(1)) == [b"last"]
    write_tokens(binary, folder / "tokens", bob="another")
    assert_status(stream.ending(), grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_REVOKED")
    assert stream.ledger.going_away.resume_after.sequence == stream.ledger.events[-1].sequence
    ann.close()


def test_command_line_sends_a_token_and_trusts_the_given_ca(secure, folder, binary):
    url = f"https://localhost:{secure.address.rsplit(':', 1)[1]}"
    (folder / "ann.token").write_text(TOKEN + "\n")

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [binary, *map(str, arguments), "--server", url, "--tls-ca", str(folder / "tls.crt")]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    published = run("pub", "orders.eu", "hello", "--token-file", folder / "ann.token")
    assert published.stdout == "1 event accepted\n", published.stderr
    seen = run("sub", "orders.>", "--replay", 1, "--count", 1, "--token", TOKEN)
    assert "hello" in seen.stdout, seen.stderr
    credentials = 4
    assert run("pub", "orders.eu", "x").returncode == credentials
    assert run("pub", "news.x", "x", "--token", TOKEN).returncode == credentials


def test_server_refuses_tokens_without_tls_on_a_public_address(binary, folder):
    command = [binary, "serve", "--listen", "0.0.0.0:0", "--auth-tokens", str(folder / "tokens")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 2
    assert "without TLS" in ended.stderr
