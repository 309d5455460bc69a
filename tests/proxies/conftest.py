"""A server with its HTTP listener, and each of the proxies in front of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from proxies import KINDS, Backend, Certificate, Proxy, ProxyClient
from required import pytest_runtest_makereport
from support import binary, make_certificate

__all__ = ["binary", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    chain, key = make_certificate(folder)
    (folder / "both.pem").write_bytes(chain.read_bytes() + key.read_bytes())
    return Certificate(folder)


@pytest.fixture
def backend(binary: str) -> Iterator[Backend]:
    with Backend(binary) as backend:
        yield backend


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> type[Proxy]:
    """Each of the proxies, one after the other."""
    kind = KINDS[request.param]
    if shutil.which(kind.PROGRAM) is None:
        pytest.skip(f"{kind.PROGRAM} is missing: scripts/test gets it")
    return kind


@pytest.fixture
def proxy(kind: type[Proxy], backend: Backend, certificate: Certificate, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy with the configuration of packaging/, in front of the server."""
    with kind(tmp_path, certificate, backend) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy, certificate: Certificate) -> Iterator[Callable[[], ProxyClient]]:
    """Returns a function that makes clients of the proxy, each with a connection of its own."""
    clients: list[ProxyClient] = []

    def connect() -> ProxyClient:
        clients.append(ProxyClient(proxy, certificate))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[[], ProxyClient]) -> ProxyClient:
    return connect()
