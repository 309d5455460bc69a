"""What the log says of credentials that are not accepted: why, and never the credential."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from support import PATIENCE, Server, eventually, new_event, refused
from tidegate.v1 import event_service_pb2 as pb
from tidegate.v1.event_service_pb2_grpc import EventServiceStub
from tokens import SECRET, base64url, token


class Guarded:
    """A server that takes tokens, and its log."""

    def __init__(self, binary: str, folder: Path, *arguments: str) -> None:
        (folder / "secret").write_bytes(SECRET)
        (folder / "rules.toml").write_text('[[rule]]\nprincipals = ["ann"]\npublish = { allow = [">"] }\n')
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.server = Server(
                binary,
                f"--auth-jwt-secrets={folder / 'secret'}",
                "--auth-jwt-issuer=me",
                "--auth-jwt-audience=tidegate",
                f"--auth-rules={folder / 'rules.toml'}",
                *arguments,
                log=log,
            )
        self.channel = grpc.insecure_channel(self.server.address)
        self.stub = EventServiceStub(self.channel)

    def publish(self, *credentials: str) -> None:
        metadata = [("authorization", f"Bearer {credential}") for credential in credentials]
        self.stub.Publish(pb.PublishRequest(events=[new_event("a")]), metadata=metadata, timeout=PATIENCE)

    def logged(self, count: int = 1, what: str = "credentials refused") -> list[str]:
        """Returns the lines about refusals, once there are so many. A line may be written after the call is answered."""

        def lines() -> list[str]:
            return [line for line in self.log.read_text().splitlines() if what in line]

        eventually(lambda: len(lines()) >= count, lambda: f"{count} of {what!r} in the log: {self.log.read_text()}")
        return lines()


@pytest.fixture
def guarded(binary: str, tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(binary, tmp_path)
    yield guarded
    guarded.channel.close()
    guarded.server.stop()


@pytest.mark.parametrize(
    ("credential", "kind", "cause"),
    [
        (token(exp="soon"), "claims", "`exp` is"),
        (token(exp=time.time() * 1000), "claims", "are these milliseconds"),
        (token(exp=-1.5), "claims", "-1.5, which is before 1970"),
        (token(exp=None), "claims", "`exp` is missing"),
        # Made when tests are collected, which may be minutes before its test runs.
        (token(nbf=time.time() + 9999), "claims", "in the future"),
        (token(aud=["other"]), "claims", "auth.jwt.audience"),
        (token(iss="other\n\x1b[31m"), "claims", "auth.jwt.issuer"),
        (token(exp=time.time() - 9.5), "expired", "has passed"),
        (token({"crit": ["x"], "x": 1}), "crit", "none of these extensions"),
        (token({"alg": "none"}), "algorithm", "are for HS256"),
        (token({"alg": "x" * 8000}), "algorithm", "bytes more"),
        (token({"kid": 7}), "header", "`kid` is 7"),
        (token(secret=b"another one"), "signature", "none of the server's keys has signed it"),
        ("opaque", "unknown", "no file lists it"),
        ("a.b", "form", "2 parts"),
    ],
)
def test_refused_token_is_logged_with_its_cause(guarded, credential, kind, cause):
    reason = "CREDENTIALS_EXPIRED" if kind == "expired" else "CREDENTIALS_INVALID"
    with refused(reason, code=grpc.StatusCode.UNAUTHENTICATED):
        guarded.publish(credential)
    (line,) = guarded.logged()
    assert " WARN " in line and f'kind="{kind}"' in line and cause in line and "address=127.0.0.1" in line, line
    assert len(line) < 700 and line.isprintable(), line
    for part in credential.split("."):
        assert len(part) < 8 or part not in line, line


def test_missing_and_malformed_credentials_are_logged(guarded):
    with refused("CREDENTIALS_MISSING", code=grpc.StatusCode.UNAUTHENTICATED):
        guarded.publish()
    with refused("CREDENTIALS_INVALID", code=grpc.StatusCode.UNAUTHENTICATED):
        guarded.publish(token(), token())
    missing, twice = guarded.logged(2)
    assert 'kind="missing"' in missing
    assert "more than one `authorization`" in twice


def test_refusals_cannot_fill_the_log(guarded):
    for _ in range(300):
        with pytest.raises(grpc.RpcError):
            guarded.publish(base64url(os.urandom(30)))
    lines = guarded.logged(2)
    assert {re.search('kind="(.*?)"', line)[1] for line in lines} == {"unknown", "rate"}
    # One of each kind for every 10 s of the loop.
    assert len(lines) <= 6


def test_long_token_is_accepted(guarded):
    for groups in (100, 9000, 11000):
        guarded.publish(token(groups="x" * groups))


class Firewall(BaseHTTPRequestHandler):
    """Lets nobody through who does not say what program it is, and sends everybody else elsewhere."""

    def do_GET(self) -> None:
        agent = self.headers["User-Agent"] or ""
        self.send_response(302 if re.fullmatch(r"tidegate/\d+\.\d+\.\d+", agent) else 403)
        self.send_header("Location", "https://elsewhere.example/keys")
        self.end_headers()
        self.wfile.write(b"<html>who are you?</html>")

    def log_message(self, *_: object) -> None:
        pass


def test_failed_fetch_of_keys_is_logged_with_the_answer(binary, tmp_path):
    firewall = HTTPServer(("127.0.0.1", 0), Firewall)
    threading.Thread(target=firewall.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{firewall.server_port}/keys"
    guarded = Guarded(binary, tmp_path, f"--auth-jwt-key-sets={url}")
    # Its key is not known, so it waits for the fetch.
    with refused("KEYS_UNAVAILABLE", code=grpc.StatusCode.UNAVAILABLE):
        guarded.publish(token({"kid": "another"}, secret=b"another one"))
    line = guarded.logged(what="cannot fetch a JSON Web Key Set")[0]
    for words in (url, "302 Found", "https://elsewhere.example/keys", "redirects are not followed"):
        assert words in line, line
    guarded.publish(token())
    guarded.channel.close()
    guarded.server.stop()
    firewall.shutdown()
