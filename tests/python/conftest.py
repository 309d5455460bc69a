"""A server and clients for each test, on a port and connections of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from support import Client, Server


@pytest.fixture(scope="session")
def binary() -> str:
    """The program under test."""
    path = os.environ.get("TIDEGATE_BIN")
    if not path:
        pytest.exit("TIDEGATE_BIN must be the path of the tidegate program; scripts/test sets it", returncode=4)
    return path


@pytest.fixture
def server(binary: str) -> Iterator[Server]:
    server = Server(binary)
    yield server
    server.stop()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Client]]:
    """Makes clients, each with a connection of its own."""
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
