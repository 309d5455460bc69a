"""A server and clients for each test, on a port and connections of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from languages import clojure, node
from required import pytest_runtest_makereport
from support import Client, Server, binary

__all__ = ["binary", "clojure", "node", "pytest_runtest_makereport"]


@pytest.fixture(autouse=True)
def no_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a test fail that starts a server in spite of its marker."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the marker `no_server` says that no server is started: take it off")

    if request.node.get_closest_marker("no_server"):
        monkeypatch.setattr(Server, "__init__", refuse)


@pytest.fixture
def server(binary: str) -> Iterator[Server]:
    server = Server(binary)
    yield server
    server.stop()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Client]]:
    """Returns a function that makes clients, each with a connection of its own."""
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(Client(server.address))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[[], Client]) -> Client:
    return connect()
