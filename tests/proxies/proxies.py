"""nginx, HAProxy and Envoy as child processes, with the configurations of packaging/ but for ports and certificates."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from support import CHANNEL_OPTIONS, PATIENCE, Client, Server, eventually, metric

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"


class Certificate:
    """The files of a certificate for localhost."""

    def __init__(self, folder: Path) -> None:
        self.chain = folder / "tls.crt"
        self.key = folder / "tls.key"
        # The chain and the key in one file, as HAProxy wants them.
        self.both = folder / "both.pem"


class Backend:
    """A server whose ports stay the same when it starts again."""

    def __init__(self, binary: str, *arguments: str) -> None:
        self.binary = binary
        self.arguments = arguments
        self.server = self._start("127.0.0.1:0", "127.0.0.1:0")
        self.address = self.server.address
        self.http_address = self.server.http.removeprefix("http://")
        self.port, self.http_port = (address.rsplit(":", 1)[1] for address in (self.address, self.http_address))

    def _start(self, address: str, http_address: str) -> Server:
        return Server(self.binary, "--http", http_address, *self.arguments, listen=address)

    def start_again(self) -> None:
        self.server = self._start(self.address, self.http_address)

    def stop(self) -> None:
        self.server.stop()

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def metric(self, name: str) -> float:
        return metric(f"http://{self.http_address}", name)

    def await_metric(self, name: str, value: float) -> None:
        eventually(lambda: self.metric(name) == value, lambda: f"{name} = {value}: it is {self.metric(name)}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Proxy:
    """A proxy in front of a server, which listens with TLS on a port that was free."""

    PROGRAM: str
    # Its configuration, in packaging/.
    PACKAGED: str

    def __init__(self, folder: Path, certificate: Certificate, backend: Backend, **changes: str) -> None:
        self.folder = folder
        self.log = folder / f"{self.PROGRAM}.log"
        # Proxies announce no port, so one that was free may be taken by the time that they ask for it.
        for _ in range(5):
            self.port = free_port()
            command = self.command(self.configuration(certificate, backend, changes))
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            if self._listens():
                return
            self.stop()
        pytest.fail(f"{self.PROGRAM} does not start: {self.log.read_text()}")

    def configuration(self, certificate: Certificate, backend: Backend, changes: dict[str, str]) -> str:
        """The configuration of packaging/, with the ports and certificates of the test, and what else is to change."""
        text = replaced((PACKAGING / self.PACKAGED).read_text(), self.places(certificate, backend))
        return replaced(text, changes)

    def places(self, certificate: Certificate, backend: Backend) -> dict[str, str]:
        """What the packaged configuration says of ports and certificates, and what the test has instead."""
        raise NotImplementedError

    def command(self, configuration: str) -> list[str]:
        raise NotImplementedError

    def _listens(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            time.sleep(0.02)
        return False

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def resident_kib(self) -> int:
        """The memory of the process and its children."""
        pids, total = [self.process.pid], 0
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)[1])
            pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return total

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.process.poll() is None:
            # Its own group, in which its workers are too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def replaced(text: str, changes: dict[str, str]) -> str:
    """A configuration with other words, each of which has to be there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the configuration"
        text = text.replace(old, new)
    return text


class Nginx(Proxy):
    PROGRAM = "nginx"
    PACKAGED = "nginx/tidegate.conf"

    # The rest of a configuration, which distributions bring.
    MAIN = """
daemon off;
pid nginx.pid;
error_log stderr info;
worker_processes 1;
{user}
events {{ worker_connections 1000; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server}
}}
"""

    def places(self, certificate: Certificate, backend: Backend) -> dict[str, str]:
        return {
            "server 127.0.0.1:50051;": f"server {backend.address};",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "/etc/nginx/tidegate/tls.crt": str(certificate.chain),
            "/etc/nginx/tidegate/tls.key": str(certificate.key),
        }

    def configuration(self, certificate: Certificate, backend: Backend, changes: dict[str, str]) -> str:
        server = super().configuration(certificate, backend, changes)
        # As root its workers would be another user, who may not write in the folder of the test.
        user = "user root;" if os.geteuid() == 0 else ""
        return self.MAIN.format(user=user, server=server)

    def command(self, configuration: str) -> list[str]:
        (self.folder / "nginx.conf").write_text(configuration)
        return ["nginx", "-e", "stderr", "-p", str(self.folder), "-c", "nginx.conf"]


class HaProxy(Proxy):
    PROGRAM = "haproxy"
    PACKAGED = "haproxy/tidegate.cfg"

    def places(self, certificate: Certificate, backend: Backend) -> dict[str, str]:
        server = {
            "server tidegate 127.0.0.1:50051": f"server tidegate {backend.address}",
            "port 50080": f"port {backend.http_port}",
        }
        return server | self.listener(certificate)

    def listener(self, certificate: Certificate) -> dict[str, str]:
        return {
            "bind :443 ssl": f"bind 127.0.0.1:{self.port} ssl",
            "/etc/haproxy/tidegate.pem": str(certificate.both),
        }

    def command(self, configuration: str) -> list[str]:
        (self.folder / "haproxy.cfg").write_text(configuration)
        return ["haproxy", "-db", "-f", str(self.folder / "haproxy.cfg")]


class HaProxyTcp(HaProxy):
    """HAProxy that passes connections on as they are."""

    PACKAGED = "haproxy/tidegate-tcp.cfg"

    def listener(self, _: Certificate) -> dict[str, str]:
        return {"bind :443": f"bind 127.0.0.1:{self.port}"}


class Envoy(Proxy):
    PROGRAM = "envoy"
    PACKAGED = "envoy/tidegate.yaml"

    def places(self, certificate: Certificate, backend: Backend) -> dict[str, str]:
        return {
            "port_value: 50051": f"port_value: {backend.port}",
            "port_value: 50080": f"port_value: {backend.http_port}",
            "address: 0.0.0.0, port_value: 443 ": f"address: 127.0.0.1, port_value: {self.port} ",
            "/etc/envoy/tidegate/tls.crt": str(certificate.chain),
            "/etc/envoy/tidegate/tls.key": str(certificate.key),
        }

    def command(self, configuration: str) -> list[str]:
        (self.folder / "envoy.yaml").write_text(configuration)
        # The identity is one of the memory that processes of Envoy share.
        command = ["envoy", "--config-path", str(self.folder / "envoy.yaml"), "--use-dynamic-base-id"]
        return [*command, "--concurrency", "1", "--log-level", "warning"]


KINDS: dict[str, type[Proxy]] = {"nginx": Nginx, "HAProxy": HaProxy, "Envoy": Envoy}


class ProxyClient(Client):
    """The generated stubs on one connection to a proxy."""

    def __init__(self, proxy: Proxy, certificate: Certificate, shows_it: bool = False) -> None:
        chain, key = certificate.chain.read_bytes(), certificate.key.read_bytes()
        credentials = grpc.ssl_channel_credentials(chain, *((key, chain) if shows_it else ()))
        super().__init__(channel=grpc.secure_channel(f"localhost:{proxy.port}", credentials, options=CHANNEL_OPTIONS))

    def __enter__(self) -> ProxyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
