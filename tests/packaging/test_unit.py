"""The unit of systemd hides much from the server: these tests hide it too, without systemd, and count what it uses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from packages import as_root, needs, program, shipped, unit_setting, unit_settings
from support import PATIENCE, Client, eventually, make_certificate, new_event, payloads, pb
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

MIB = 1 << 20

# What the settings of the unit do, as commands: the settings stand beside the lines. No other user, no capability.
HIDE = r"""
set -e
# ProcSubset=pid and ProtectProc=invisible
mount -t proc -o subset=pid,hidepid=invisible proc /proc
# ProtectControlGroups=
for group in /sys/fs/cgroup /sys/fs/cgroup/*; do
    ! mountpoint -q "$group" || mount -o remount,bind,ro "$group"
done
# ProtectSystem=strict, but for the folder of the test
mount --bind "$1" "$1"
mount -o remount,bind,ro /
# PrivateDevices=
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for device in null zero full random urandom tty; do
    touch "$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done
mount --move "$1/dev" /dev 2>/dev/null || mount --bind "$1/dev" /dev
umask 0077
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --no-new-privs "$@"
"""


@pytest.fixture
def hidden(tmp_path, binary) -> list[str]:
    """The words before a command that then sees only what the unit shows."""
    for program in ("unshare", "setpriv", "mount"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: apt-get install util-linux mount")
    (tmp_path / "dev").mkdir()
    open_to_all(tmp_path)
    # The program may lie where another user may not look.
    shutil.copy(binary, tmp_path / "tidegate")
    before = [*as_root(), "unshare", "--mount", "--propagation", "private", "bash", "-c", HIDE, "hide", str(tmp_path)]
    tried = subprocess.run([*before, "true"], capture_output=True, text=True, timeout=PATIENCE)
    if tried.returncode != 0:
        pytest.skip(f"no mounts can be made here: {tried.stderr}")
    return before


def open_to_all(folder: Path) -> None:
    """Lets the user of the service into a folder of a test, and no further."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)


@contextmanager
def service(hidden: list[str], tmp_path: Path, *before: str) -> Iterator:
    with shipped("systemd", str(tmp_path / "tidegate"), tmp_path, *before, *hidden) as server:
        yield server


def test_what_the_tests_hide_is_what_the_unit_hides():
    for setting in ("PrivateDevices", "ProtectControlGroups", "NoNewPrivileges", "DynamicUser"):
        assert unit_setting(setting) == "yes", setting
    assert unit_setting("ProcSubset") == "pid"
    assert unit_setting("ProtectProc") == "invisible"
    assert unit_setting("ProtectSystem") == "strict"
    assert unit_setting("CapabilityBoundingSet") == ""
    assert unit_setting("UMask") == "0077"
    assert unit_setting("RuntimeDirectory") == "tidegate"


def test_what_the_unit_hides_is_hidden(hidden):
    def tried(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run([*hidden, *command], capture_output=True, text=True, timeout=PATIENCE)

    assert tried("cat", "/proc/meminfo").returncode != 0
    assert tried("cat", "/proc/1/cmdline").returncode != 0
    assert tried("touch", "/etc/tidegate-test").returncode != 0
    assert tried("cat", "/proc/self/cgroup").returncode == 0
    assert "CapBnd:\t0000000000000000" in tried("cat", "/proc/self/status").stdout
    assert not set(tried("ls", "/dev").stdout.split()) - {"null", "zero", "full", "random", "urandom", "tty"}


def use(server) -> None:
    """Publishes and subscribes, with what is kept and what is replayed."""
    client = Client(server.address)
    stream = client.subscribe("a")
    client.publish(new_event("a", b"1"))
    assert payloads(stream.take(1)) == [b"1"]
    assert payloads(client.subscribe("a", replay_last=1).replay()) == [b"1"]
    client.close()


def test_the_service_works_and_has_metrics_with_what_the_unit_hides(hidden, tmp_path):
    with service(hidden, tmp_path) as server:
        use(server)
        assert server.metric("tidegate_events_published_total") == 1
        assert server.get("/healthz")[0] == 200


def test_its_budget_is_finite_with_what_the_unit_hides(hidden, tmp_path):
    # It can read neither the memory of the machine nor, where there is none, a limit.
    with service(hidden, tmp_path) as server:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < server.metric("tidegate_memory_budget_bytes") <= machine / 4


# ===== The limit of the unit =====


@pytest.fixture
def limited() -> Iterator[list[str]]:
    """The words before a command that then may have 256 MiB, by a control group as systemd makes one for a unit."""
    name = f"tidegate-test-{os.getpid()}"
    of_process = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in of_process:
        group = Path("/sys/fs/cgroup/memory") / of_process["memory"].lstrip("/") / name
        limit = "memory.limit_in_bytes"
    else:
        group = Path("/sys/fs/cgroup") / name
        limit = "memory.max"
    script = f'mkdir -p {group} && echo {256 * MIB} >{group}/{limit}'
    made = subprocess.run([*as_root(), "sh", "-c", script], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no control group can be made here: {made.stderr}")
    yield [*as_root(), "sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "limited"]
    subprocess.run([*as_root(), "rmdir", str(group)], check=True)


def test_its_budget_is_a_quarter_of_the_limit_of_its_unit(limited, hidden, tmp_path):
    with service(hidden, tmp_path, *limited) as server:
        assert server.metric("tidegate_memory_budget_bytes") == 64 * MIB


# ===== System calls =====


def allowed_calls() -> set[str]:
    """The system calls that the unit allows, by the groups that this systemd knows."""

    def members(group: str) -> set[str]:
        said = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
        found = set()
        for name in re.findall(r"^ {4}([@\w-]+)$", said.stdout, re.MULTILINE):
            found |= members(name) if name.startswith("@") else {name}
        return found

    allowed: set[str] = set()
    for line in unit_settings("SystemCallFilter"):
        names = line.removeprefix("~").split()
        named = set().union(*(members(name) if name.startswith("@") else {name} for name in names))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


@needs("strace", "apt-get install strace")
@needs("systemd-analyze", "apt-get install systemd")
def test_the_unit_allows_every_system_call_of_the_server(binary, tmp_path):
    trace = tmp_path / "trace"
    before = ["strace", "-f", "-o", str(trace)]
    with shipped("systemd", binary, tmp_path, *before) as server:
        use(server)
        server.get("/metrics")
        pid = program(server.process)
        subprocess.run(["kill", "-HUP", str(pid)], check=True)
        # A drain with a stream that is open.
        client = Client(server.address)
        client.subscribe("a")
        subprocess.run(["kill", "-TERM", str(pid)], check=True)
        assert server.process.wait(PATIENCE) == 0
        client.close()
    assert_allowed(trace.read_text())


@needs("strace", "apt-get install strace")
@needs("systemd-analyze", "apt-get install systemd")
def test_the_unit_allows_every_system_call_of_tls_and_credentials(binary, tmp_path):
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "tokens").write_text("")
    (tmp_path / "rules").write_text("")
    more = f"--tls-certificate {certificate} --tls-key {key} --auth-tokens {tmp_path}/tokens --auth-rules {tmp_path}/rules"
    # It looks the name up, and asks nobody.
    more += " --auth-jwt-issuer https://a.test --auth-jwt-audience a --auth-jwt-key-sets https://localhost:1/keys"
    trace = tmp_path / "trace"
    before = ["strace", "-f", "-o", str(trace)]
    with shipped("systemd", binary, tmp_path, *before, more=tuple(more.split())) as server:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(server.address.replace("127.0.0.1", "localhost"), credentials) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                EventServiceStub(channel).Publish(pb.PublishRequest(events=[new_event("a")]), timeout=PATIENCE)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        eventually(lambda: server.metric("tidegate_key_fetch_failures_total") > 0, "somebody to ask for the keys")
        subprocess.run(["kill", "-TERM", str(program(server.process))], check=True)
        assert server.process.wait(PATIENCE) == 0
    assert_allowed(trace.read_text())


def assert_allowed(trace: str) -> None:
    # Of a thread that ends with the process as it begins a call, strace reads a negative number, which no call has.
    used = set(re.findall(r"^\d+ +(?!syscall_0xffffffff)(\w+)\(", trace, re.MULTILINE))
    assert {"accept4", "epoll_wait", "prlimit64"} <= used
    assert not used - allowed_calls()
    # MemoryDenyWriteExecute=
    assert not re.findall(r"^\d+ +(?:mmap|mprotect)\(.*PROT_WRITE\|PROT_EXEC.*", trace, re.MULTILINE)
    # RestrictAddressFamilies=
    families = set(re.findall(r"^\d+ +socket\((\w+)", trace, re.MULTILINE))
    assert families <= set(unit_setting("RestrictAddressFamilies").split())
