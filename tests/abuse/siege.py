"""A server under attack. Beside the attacker there are an honest neighbor, which must lose nothing, and a probe, which
reads the resources of the process before and after."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from frames import PATIENCE, Call, Peer
from support import Client, Ledger, Server, Stream, new_event, pb

# How long to measure the neighbor before the attack begins.
BASELINE_SECONDS = 0.4
# The time between two events of the neighbor.
INTERVAL_SECONDS = 0.005
# The neighbor's p99 during the attack may be at most 20 times that before it, or 3 s if that is more: a machine on
# which all tests run at once has pauses of its own.
P99_FACTOR, P99_FLOOR_SECONDS = 20, 3.0

# The growth of resident memory that is allowed after the attack, in KiB: freed memory that the allocator keeps, and the
# history of the neighbor's events.
MEMORY_SLACK_KIB = 48 << 10

# The most bytes that the server may log during an attack: a flood must not fill a disk.
LOG_BYTES = 64 << 10


def p99(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


@dataclass
class Held:
    """The resources that the process holds."""

    resident_kib: int
    descriptors: int
    sockets: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held:
        with open(f"/proc/{pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        folder, targets = f"/proc/{pid}/fd", []
        for descriptor in os.listdir(folder):
            try:
                targets.append(os.readlink(f"{folder}/{descriptor}"))
            except FileNotFoundError:
                continue
        sockets = sum(target.startswith("socket:") for target in targets)
        return cls(int(fields["VmRSS"].split()[0]), len(targets), sockets, int(fields["Threads"]))


class Neighbor:
    """An honest publisher and an honest subscriber, each on a connection of its own."""

    def __init__(self, address: str, *, resumes: bool) -> None:
        self.publisher, self.subscriber = Client(address), Client(address)
        # Whether it resumes when the server ends its stream.
        self.resumes = resumes
        # The streams before the current one.
        self.earlier: list[Stream] = []
        self.stream = self.subscriber.subscribe("neighbor.>", timeout=600)
        # Indexed by the number of the event.
        self.latencies: list[float] = []
        self.published = 0
        # The status of the stream, once it has ended.
        self.ending: grpc.RpcError | None = None
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._publishing = threading.Thread(target=self._guarded, args=[self._publish], daemon=True)
        self._reading = threading.Thread(target=self._guarded, args=[self._read], daemon=True)
        self._publishing.start()
        self._reading.start()

    def await_events(self, count: int) -> None:
        """Waits until `count` events have come in all."""
        deadline = time.monotonic() + PATIENCE
        while len(self.latencies) < count and not self._failures:
            assert time.monotonic() < deadline, f"the neighbor got {len(self.latencies)} of {count} events"
            time.sleep(INTERVAL_SECONDS)

    def leave(self) -> None:
        """Stops, and checks that every published event has come."""
        self._stop.set()
        self._publishing.join(PATIENCE)
        self._reading.join(PATIENCE)
        alive = self._publishing.is_alive() or self._reading.is_alive()
        for failure in self._failures:
            raise failure
        assert not alive, f"the neighbor got {len(self.latencies)} of {self.published} events"
        self.stream.cancel()
        self.publisher.close()
        self.subscriber.close()
        ledgers = [stream.ledger for stream in [*self.earlier, self.stream]]
        assert not any(ledger.gaps for ledger in ledgers), "the neighbor has a gap"
        events = [event for ledger in ledgers for event in ledger.events if event.topic == "neighbor.events"]
        numbers = [event.payload.split()[0] for event in events]
        assert numbers == [b"%d" % number for number in range(len(numbers))]
        if self.ending is None:
            assert len(numbers) == self.published
        else:
            # Events that were accepted but not delivered before the end lie after the position to resume after.
            resume_after = ledgers[-1].going_away.resume_after
            assert not events or resume_after.sequence >= events[-1].sequence

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            self._failures.append(failure)
            self._stop.set()

    def _publish(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            event = new_event("neighbor.events", b"%d %d" % (self.published, time.monotonic_ns()))
            try:
                self.publisher.publish(event)
            except grpc.RpcError:
                # The server is ending. An event that it did not accept need not come.
                assert self.ending is not None or self._ends_soon()
                return
            self.published += 1
        self.publisher.publish(new_event("neighbor.last"))

    def _ends_soon(self) -> bool:
        self._reading.join(PATIENCE)
        return self.ending is not None

    def _read(self) -> None:
        while True:
            try:
                kind, content = self.stream.read()
            except grpc.RpcError as ending:
                if not self.resumes:
                    self.ending = ending
                    return
                self.earlier.append(self.stream)
                position = self.stream.ledger.going_away.resume_after
                self.stream = self.subscriber.subscribe("neighbor.>", timeout=600, resume_after=position)
                continue
            now = time.monotonic_ns()
            for event in content.events if kind == "batch" else ():
                if event.topic == "neighbor.last":
                    return
                self.latencies.append((now - int(event.payload.split()[1])) / 1e9)


class Siege:
    """The server, the neighbor, the probe, and the peers of the attacker."""

    def __init__(
        self,
        binary: str,
        *arguments: str,
        ends_itself: bool = False,
        neighbor_resumes: bool = False,
        memory_slack_kib: int = MEMORY_SLACK_KIB,
    ) -> None:
        self.log = tempfile.TemporaryFile()
        self.server = Server(binary, *arguments, log=self.log)
        self.address = self.server.address
        self.memory_slack_kib = memory_slack_kib
        self.figures: dict[str, str] = {}
        self.peers: list[Peer] = []
        # Whether the test ends the server itself.
        self.ends_itself = ends_itself
        self.neighbor_resumes = neighbor_resumes
        # Connect now, so that the readings before the attack include this connection.
        self.client = Client(self.address)
        self.client.publish(new_event("attack.none"))

    # ----- the attacker -----

    def peer(self, says: bytes | None = None, **options) -> Peer:
        self.peers.append(Peer(self.address, says=says, **options))
        return self.peers[-1]

    def greeted(self, *pairs: tuple[int, int], **options) -> Peer:
        self.peers.append(Peer.greeted(self.address, *pairs, **options))
        return self.peers[-1]

    def subscriptions(self) -> int:
        """Returns the number of subscriptions to `attack.>`: those that one event matches."""
        return self.client.publish(new_event("attack.count")).matched

    def await_subscriptions(self, wanted: int) -> None:
        self.eventually(lambda: self.subscriptions() == wanted, f"{wanted} subscriptions")

    def eventually(self, done: Callable[[], bool], what: str, patience: float = PATIENCE) -> float:
        """Polls until `done`, since the server has no event for it. Returns how long it took."""
        began = time.monotonic()
        while not done():
            assert time.monotonic() - began < patience, f"waited {patience} s for {what}"
            time.sleep(0.01)
        return time.monotonic() - began

    def held(self) -> Held:
        return Held.by(self.server.process.pid)

    def cpu_seconds(self) -> float:
        """Returns the processor time that the server has used so far."""
        with open(f"/proc/{self.server.process.pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def note(self, name: str, value: str) -> None:
        """Adds a figure to the report at the end."""
        self.figures[name] = value

    # ----- before and after -----

    def __enter__(self) -> Siege:
        try:
            self.neighbor = Neighbor(self.address, resumes=self.neighbor_resumes)
            began = time.monotonic()
            self.neighbor.await_events(int(BASELINE_SECONDS / INTERVAL_SECONDS / 4))
            time.sleep(max(0.0, began + BASELINE_SECONDS - time.monotonic()))
        except BaseException:
            self.server.process.kill()
            self.server.process.wait()
            raise
        self.before = self.held()
        self._baseline_events = len(self.neighbor.latencies)
        self._peak_kib = self.before.resident_kib
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()
        return self

    def __exit__(self, failed, *_: object) -> None:
        self._over.set()
        self._watching.join()
        for peer in self.peers:
            peer.close()
        if failed:
            self.server.process.kill()
            self.server.process.wait()
            return
        try:
            if not self.ends_itself:
                # Events that were certainly published after the attack began.
                self.neighbor.await_events(self._baseline_events + 40)
            self.neighbor.leave()
            self._check_latency()
            if not self.ends_itself:
                self._check_what_is_held()
        finally:
            self.client.close()
            if not self.ends_itself:
                self.server.stop()
        self._check_log()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            try:
                self._peak_kib = max(self._peak_kib, self.held().resident_kib)
            except (FileNotFoundError, ProcessLookupError, KeyError):
                return

    @property
    def growth_kib(self) -> int:
        """Returns the largest growth of resident memory so far."""
        return self._peak_kib - self.before.resident_kib

    def _check_latency(self) -> None:
        latencies = self.neighbor.latencies
        before, during = latencies[: self._baseline_events], latencies[self._baseline_events :]
        quiet, loud = p99(before), p99(during)
        self.note("neighbor", f"{len(latencies)} events, 0 lost, p99 {quiet * 1e3:.1f} -> {loud * 1e3:.1f} ms")
        self.note("memory", f"+{self.growth_kib / 1024:.1f} MiB at most")
        bound = max(P99_FACTOR * quiet, P99_FLOOR_SECONDS)
        assert loud <= bound, f"the neighbor's p99 went from {quiet:.4f} s to {loud:.4f} s"

    def logged(self) -> str:
        """Returns the log of the server so far."""
        self.log.seek(0)
        return self.log.read().decode()

    def _check_log(self) -> None:
        logged = self.logged()
        assert "panicked" not in logged, logged[-10_000:]
        assert len(logged) <= LOG_BYTES, f"a flood of {len(logged)} bytes of logs"

    def _check_what_is_held(self) -> None:
        # The connections of the neighbor have gone too.
        sockets, descriptors = self.before.sockets - 2, self.before.descriptors - 2
        assert self.subscriptions() == 0, "subscriptions are left"
        try:
            self.eventually(
                lambda: (
                    (now := self.held()).sockets <= sockets
                    and now.descriptors <= descriptors
                    and now.threads <= self.before.threads
                    and now.resident_kib <= self.before.resident_kib + self.memory_slack_kib
                ),
                "what was held to be given back",
            )
        except AssertionError as failure:
            raise AssertionError(f"before: {self.before}, now: {self.held()}") from failure


def audit(request: bytes, call: Call) -> Ledger:
    """Records every response of a subscription so far, which checks its order, its indexes and its gaps."""
    ledger = Ledger(pb.SubscribeRequest.FromString(request))
    for response in call.messages():
        ledger.enter(pb.SubscribeResponse.FromString(response))
    return ledger


def subscribe_request(*filters: str, **fields) -> bytes:
    return pb.SubscribeRequest(filters=filters or ("attack.>",), **fields).SerializeToString()


def publish_request(*events: pb.NewEvent) -> bytes:
    return pb.PublishRequest(events=events).SerializeToString()
