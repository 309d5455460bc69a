"""The clients of other languages, as commands that all understand the same flags and print the same JSON lines."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import PATIENCE

ROOT = Path(__file__).parents[2]
CLOJURE = ROOT / "examples" / "clojure"
NODE = ROOT / "examples" / "node"
# Programs that do what an author would, and lose events, or do not.
TRAPS = Path(__file__).parent / "traps"
# scripts/test installs the packages of npm there.
NODE_TARGET = ROOT / "target" / "node"


@pytest.fixture(scope="session")
def clojure() -> Path:
    """The example in Clojure, compiled. Its libraries are packages of Debian."""
    missing = [program for program in ("java", "javac", "protoc", "grpc_java_plugin") if shutil.which(program) is None]
    jars = ["clojure", "grpc-netty", "grpc-stub", "netty-codec-http2", "perfmark-api", "protobuf"]
    missing += [f"{jar}.jar" for jar in jars if not Path("/usr/share/java", f"{jar}.jar").exists()]
    if missing:
        pytest.skip(f"missing of Debian's packages of Java: {', '.join(missing)}")
    subprocess.run([CLOJURE / "build"], check=True, timeout=5 * PATIENCE)
    return CLOJURE / "run"


@pytest.fixture(scope="session")
def node() -> Path:
    """A folder with the example for Node, and the packages that it needs."""
    if shutil.which("node") is None:
        pytest.skip("missing: node")
    if not (NODE_TARGET / "node_modules" / "@grpc" / "grpc-js").is_dir():
        pytest.skip("missing: the packages of npm under target/node, which scripts/test installs")
    for path in (*NODE.glob("*.js"), *TRAPS.glob("*.js"), NODE / "package.json"):
        shutil.copy(path, NODE_TARGET)
    return NODE_TARGET


class Lines:
    """A program as a child process, whose lines are read one at a time."""

    def __init__(self, command: list[str | Path]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[tuple[float, str] | None] = queue.Queue()
        # The time at which the newest line that was read had arrived.
        self.arrived = 0.0
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        with contextlib.suppress(ValueError):
            for line in self.process.stdout:
                self._lines.put((time.monotonic(), line))
        self._lines.put(None)

    def line(self) -> str | None:
        """Returns the next line without its ending, or None at the end."""
        arrived = self._lines.get(timeout=PATIENCE)
        if arrived is None:
            return None
        self.arrived, line = arrived
        return line.rstrip("\n")

    def rest(self) -> list[str]:
        return list(iter(self.line, None))

    def write(self, text: str) -> None:
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


class Follower(Lines):
    """A subscriber whose lines are JSON."""

    def next(self) -> dict:
        line = self.line()
        assert line is not None, f"the subscriber ended, with exit code {self.process.wait()}"
        return json.loads(line)

    def skip_to(self, kind: str) -> dict:
        while (update := self.next())["type"] != kind:
            pass
        return update

    def end_input(self) -> None:
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Reads the rest, and awaits the end."""
        self.rest()
        return self.process.wait(PATIENCE)


@pytest.fixture
def run() -> Iterator[Callable[..., Follower]]:
    """Starts a command whose output is JSON lines."""
    children: list[Follower] = []

    def run(*command: str | Path) -> Follower:
        children.append(Follower(list(command)))
        return children[-1]

    yield run
    for child in children:
        child.stop()


class Language:
    """A client: the program itself, or an example of another language."""

    def __init__(self, name: str, subscribe: list[str | Path], publish: list[str | Path], scheme: str = "") -> None:
        self.name = name
        self.subscribe_command = subscribe
        self._publish = publish
        self._scheme = scheme
        self._children: list[Follower] = []

    def write_to(self, path: str, address: str, *arguments: str) -> int:
        """Subscribes with its output in that file, and returns the exit code."""
        command = [*self.subscribe_command, "--server", self._scheme + address, *arguments]
        with open(path, "w") as output:
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, timeout=PATIENCE).returncode

    def follow(self, address: str, *arguments: str) -> Follower:
        follower = Follower([*self.subscribe_command, "--server", self._scheme + address, *arguments])
        self._children.append(follower)
        return follower

    def publish(self, address: str, topic: str, *payloads: str) -> None:
        subprocess.run(
            [*self._publish, "--server", self._scheme + address, topic, *payloads],
            check=True,
            timeout=PATIENCE,
        )

    def stop(self) -> None:
        for child in self._children:
            child.stop()


@pytest.fixture(params=["program", "clojure", "node"])
def language(request: pytest.FixtureRequest) -> Iterator[Language]:
    match request.param:
        case "program":
            binary = request.getfixturevalue("binary")
            language = Language("program", [binary, "sub", "--output", "json"], [binary, "pub"], "http://")
        case "clojure":
            run = request.getfixturevalue("clojure")
            language = Language("clojure", [run, "-m", "tidegate.main", "subscribe"], [run, "-m", "tidegate.main", "publish"])
        case _:
            folder = request.getfixturevalue("node")
            language = Language("node", ["node", folder / "subscribe.js"], ["node", folder / "publish.js"])
    yield language
    language.stop()
