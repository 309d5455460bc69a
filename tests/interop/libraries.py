"""Libraries of gRPC as clients: grpcio in this process, and others in programs that make the calls they are told to.

A response is read only when a test asks for it, in all of them, so that each can be a client that does not read.
"""

from __future__ import annotations

import base64
import itertools
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from languages import ROOT
from support import CHANNEL_OPTIONS, PATIENCE, Client, pb

PEERS = Path(__file__).parent / "peers"
DESCRIPTORS = ROOT / "crates" / "tidegate-proto" / "proto" / "descriptors.binpb"
# scripts/test installs the packages of npm there.
CONNECT_TARGET = ROOT / "target" / "connect"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Ending(grpc.RpcError):
    """How a call ended, as grpcio's own errors tell it."""

    def __init__(self, code: int, message: str, trailers: list[tuple[str, str]]) -> None:
        self._code, self._message, self._trailers = CODES[code], message, trailers
        super().__init__(f"{self._code}: {message}")

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> list[tuple[str, str | bytes]]:
        # Base64 comes with padding or without (gRPC over HTTP/2, "Custom-Metadata").
        return [
            (name, base64.b64decode(value + "==") if name.endswith("-bin") else value) for name, value in self._trailers
        ]


class Call:
    """A call of another program."""

    def __init__(self, peer: Peer, number: int, response: Callable[[bytes], object]) -> None:
        self._peer, self._number, self._response = peer, number, response
        self.answers: queue.Queue[dict | None] = queue.Queue()

    def tell(self, command: str, request: object = None, **fields: object) -> None:
        if request is not None:
            fields["request"] = base64.b64encode(request.SerializeToString()).decode()
        self._peer.write({"do": command, "call": self._number, **fields})

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        self.tell("next")
        answer = self.answers.get(timeout=PATIENCE)
        assert answer is not None, f"the program ended, with exit code {self._peer.process.wait()}"
        if (response := answer.get("response")) is not None:
            return self._response(base64.b64decode(response))
        if answer["code"] == 0:
            raise StopIteration
        raise Ending(answer["code"], answer["message"], answer["trailers"])

    def cancel(self) -> None:
        self.tell("cancel")


class Peer:
    """A program that makes calls on one channel, with the face of the stubs that are generated for Python."""

    def __init__(self, command: list[str | Path]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count()
        self._writing = threading.Lock()
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        for line in self.process.stdout:
            answer = json.loads(line)
            self._calls[answer["call"]].answers.put(answer)
        for call in self._calls.values():
            call.answers.put(None)

    def write(self, command: dict[str, object]) -> None:
        with self._writing:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def _begin(self, method: str, response: Callable[[bytes], object], request: object = None) -> Call:
        number = next(self._numbers)
        call = self._calls[number] = Call(self, number, response)
        call.tell("begin", request, method=method)
        return call

    # The streams of a test are read until they end, or it does.
    def Subscribe(self, request: pb.SubscribeRequest, timeout: float | None = None) -> Call:
        return self._begin("Subscribe", pb.SubscribeResponse.FromString, request)

    def Publish(self, request: pb.PublishRequest, timeout: float | None = None) -> pb.PublishResponse:
        return next(self._begin("Publish", pb.PublishResponse.FromString, request))

    def PublishStream(self, requests: Iterator[pb.PublishRequest], timeout: float | None = None) -> Call:
        call = self._begin("PublishStream", pb.PublishResponse.FromString)

        def send() -> None:
            for request in requests:
                call.tell("send", request)
            call.tell("end")

        threading.Thread(target=send, daemon=True).start()
        return call

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class PeerClient(Client):
    """A client whose calls another program makes, on one connection."""

    def __init__(self, command: list[str | Path]) -> None:
        self.stub = Peer(command)

    def close(self) -> None:
        self.stub.stop()


def grpcio(address: str, authority: Path | None = None) -> Client:
    if authority is None:
        return Client(address)
    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    return Client(channel=grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS))


def program(*command: str | Path) -> Callable[..., Client]:
    def connect(address: str, authority: Path | None = None) -> Client:
        return PeerClient([*command, address, *([] if authority is None else [authority])])

    return connect


@pytest.fixture(params=["grpcio", "grpc-js", "connect-node", "grpc-java"])
def library(request: pytest.FixtureRequest) -> Iterator[Callable[..., Client]]:
    """Returns a function that makes clients of one library, of an address and perhaps of a certificate to trust."""
    match request.param:
        case "grpcio":
            connect = grpcio
        case "grpc-js":
            folder = request.getfixturevalue("node")
            copy_programs(folder)
            connect = program("node", folder / "grpc.js")
        case "connect-node":
            if shutil.which("node") is None or not (CONNECT_TARGET / "node_modules" / "@connectrpc").is_dir():
                pytest.skip("missing: the packages of npm under target/connect, which scripts/test installs")
            copy_programs(CONNECT_TARGET)
            connect = program("node", CONNECT_TARGET / "connect.js", DESCRIPTORS)
        case _:
            connect = program(request.getfixturevalue("clojure"), PEERS / "peer.clj")
    clients: list[Client] = []

    def connect_and_keep(*arguments) -> Client:
        clients.append(connect(*arguments))
        return clients[-1]

    yield connect_and_keep
    for client in clients:
        client.close()


def copy_programs(folder: Path) -> None:
    """Puts them beside the packages that they need."""
    for path in PEERS.glob("*.js"):
        shutil.copy(path, folder)
