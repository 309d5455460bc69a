"""The file of a socket: what sidecars use, on one machine and without a network."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support import CHANNEL_OPTIONS, PATIENCE, Client, fails_on_hyper, new_event, payloads
from tidegate.v1 import admin_service_pb2 as admin_pb
from tidegate.v1.admin_service_pb2_grpc import AdminServiceStub


class Local:
    """`tidegate serve` on the file of a socket."""

    def __init__(self, binary: str, listen: str, *arguments: str, umask: int = 0o022) -> None:
        self.process = subprocess.Popen(
            [binary, "serve", "--listen", listen, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=umask,
        )
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        self.announced = self.process.stdout.readline().rstrip("\n") if readable else ""

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture
def serve(binary: str) -> Iterator:
    servers: list[Local] = []

    def serve(listen: str, *arguments: str, **options) -> Local:
        servers.append(Local(binary, listen, *arguments, **options))
        return servers[-1]

    yield serve
    for server in servers:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()
        server.process.stderr.close()


def client(path: Path, *, authority: str | None = "localhost") -> Client:
    options = [*CHANNEL_OPTIONS, *([] if authority is None else [("grpc.default_authority", authority)])]
    return Client(channel=grpc.insecure_channel(f"unix:{path}", options=options))


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_grpcio_publishes_and_subscribes_over_a_socket_file(serve, tmp_path, form):
    path = tmp_path / "tg.sock"
    server = serve(form.format(path))
    assert server.announced == f"listening on unix:{path}"
    caller = client(path)
    stream = caller.subscribe("a")
    caller.publish(new_event("a", b"1"))
    assert payloads(stream.take(1)) == [b"1"]
    # It is local, so the admin service is there, and says where the client came from.
    admin = AdminServiceStub(caller.channel)
    [state] = admin.ListSubscriptions(admin_pb.ListSubscriptionsRequest(), timeout=PATIENCE).subscriptions
    assert state.address == "unix"
    caller.close()
    assert server.stop() == 0
    assert not path.exists()


@fails_on_hyper("h2 refuses `:authority` as gRPC makes it of a path")
def test_grpcio_needs_no_option_over_a_socket_file(serve, tmp_path):
    path = tmp_path / "tg.sock"
    serve(f"unix:{path}")
    caller = client(path, authority=None)
    try:
        caller.publish(new_event("a", b"1"))
    finally:
        caller.close()


def test_socket_file_has_the_permissions_that_the_umask_leaves(serve, tmp_path):
    path = tmp_path / "tg.sock"
    serve(f"unix:{path}", umask=0o077)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_socket_file_that_a_killed_server_left_is_replaced(serve, tmp_path):
    path = tmp_path / "tg.sock"
    serve(f"unix:{path}").stop(signal.SIGKILL)
    assert path.is_socket()
    assert serve(f"unix:{path}").announced == f"listening on unix:{path}"
    caller = client(path)
    caller.publish(new_event("a"))
    caller.close()


def test_one_of_many_servers_that_start_at_once_gets_a_stale_socket_file(binary, serve, tmp_path):
    path = tmp_path / "tg.sock"
    serve(f"unix:{path}").stop(signal.SIGKILL)
    command = [binary, "serve", "--listen", f"unix:{path}"]
    for _ in range(3):
        assert path.is_socket()
        started = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(10)
        ]
        announced = [server.stdout.readline() for server in started]
        [winner] = [server for server, line in zip(started, announced, strict=True) if line]
        for loser in started:
            if loser is not winner:
                assert "a process listens on it" in loser.communicate(timeout=PATIENCE)[1]
                assert loser.returncode == 1
        caller = client(path)
        caller.publish(new_event("a"))
        caller.close()
        winner.kill()
        winner.communicate(timeout=PATIENCE)
    assert os.listdir(tmp_path) == [path.name]


def test_socket_file_of_a_running_server_is_left_to_it(serve, tmp_path):
    path = tmp_path / "tg.sock"
    serve(f"unix:{path}")
    second = serve(f"unix:{path}")
    assert second.process.wait(PATIENCE) == 1
    assert "a process listens on it" in second.process.stderr.read()
    caller = client(path)
    caller.publish(new_event("a"))
    caller.close()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_file_that_is_no_socket_is_never_removed(serve, tmp_path, kind):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("content")
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "target").write_text("content")
        path.symlink_to(tmp_path / "target")
    server = serve(f"unix:{path}")
    assert server.process.wait(PATIENCE) == 1
    assert "no socket" in server.process.stderr.read()
    assert os.path.lexists(path)


def test_path_that_another_server_took_meanwhile_is_left_to_it(serve, tmp_path):
    path = tmp_path / "tg.sock"
    server = serve(f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert server.stop() == 0
        assert path.is_socket()


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("unix:", "whole path"),
        ("unix:run/tg.sock", "whole path"),
        ("unix:/" + "x" * 119, "120 bytes"),
        ("unix:/", "that of a folder"),
        ("unix:/run/", "that of a folder"),
    ],
)
def test_socket_path_that_nobody_can_use_is_a_wrong_configuration(binary, serve, tmp_path, listen, words):
    server = serve(listen)
    assert server.process.wait(PATIENCE) == 2
    assert words in server.process.stderr.read()
    configuration = tmp_path / "tidegate.toml"
    configuration.write_text(f'listen = "{listen}"\n')
    checked = subprocess.run([binary, "check-config", configuration], capture_output=True, text=True, timeout=PATIENCE)
    assert checked.returncode == 2
    assert words in checked.stderr


def test_socket_path_in_no_folder_is_told(serve):
    server = serve("unix:/nowhere/tg.sock")
    assert server.process.wait(PATIENCE) == 1
    assert "there is no folder /nowhere: make it" in server.process.stderr.read()


def test_owner_of_a_socket_file_with_a_full_backlog_is_not_waited_for(serve, tmp_path):
    path = tmp_path / "tg.sock"
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as waiting:
        owner.bind(str(path))
        owner.listen(0)
        waiting.connect(str(path))
        server = serve(f"unix:{path}")
        assert server.process.wait(PATIENCE) == 1
        assert "a process listens on it" in server.process.stderr.read()
        assert path.is_socket()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_socket_file_of_another_user_is_told_for_what_it_is(binary, tmp_path):
    # As `/tmp` is: everybody may make files, and remove their own.
    tmp_path.chmod(0o1777)
    for folder in tmp_path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)
    path = tmp_path / "tg.sock"
    # Where another user gets to.
    program = tmp_path / "tidegate"
    shutil.copy(binary, program)

    def refused() -> str:
        command = [program, "serve", "--listen", f"unix:{path}"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, user=65534, group=65534, extra_groups=[])
        assert ran.returncode == 1
        assert path.is_socket()
        return ran.stderr

    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(str(path))
        owner.listen(1)
        path.chmod(0o700)
        assert "a socket that this user may not connect to" in refused()
    path.chmod(0o777)
    assert "this user may not remove it: remove it" in refused()
    # It is large, and pytest keeps the folders of several runs.
    program.unlink()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socket_file_of_another_kind_is_left_to_its_owner(serve, tmp_path, kind):
    path = tmp_path / "tg.sock"
    with socket.socket(socket.AF_UNIX, kind) as owner:
        owner.bind(str(path))
        if kind == socket.SOCK_SEQPACKET:
            owner.listen(1)
        server = serve(f"unix:{path}")
        assert server.process.wait(PATIENCE) == 1
        assert "a socket of another kind" in server.process.stderr.read()
        assert path.is_socket()


def test_command_line_works_over_a_socket_file(binary, serve, tmp_path):
    path = tmp_path / "tg.sock"
    url = f"unix:{path}"

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [binary, *arguments, "--server", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    unreachable = run("pub", "a", "x")
    assert unreachable.returncode == 3 and str(path) in unreachable.stderr
    serve(url)
    published = run("pub", "a", "hello")
    assert published.stdout == "1 event accepted\n", published.stderr
    seen = run("sub", "a", "--replay", "1", "--count", "1")
    assert "hello" in seen.stdout, seen.stderr
    assert run("stats").returncode == 0
