"""Helpers of the tests: the server as a child process, a plain client, and a ledger that audits every stream.

They use only the public protocol: stubs generated from the .proto file, and grpcio.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tidegate.v1 import admin_service_pb2 as admin_pb
from tidegate.v1 import event_service_pb2 as pb
from tidegate.v1.admin_service_pb2_grpc import AdminServiceStub
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

# Long enough for a loaded machine, short enough that a stream which hangs fails its test.
PATIENCE = 60

# Every client has its own connection, so that one that does not read delays no other, and a window that does not grow,
# so that the bytes in the transport are known.
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.enable_http_proxy", 0),
]

# The engine under test: every suite runs on both. h2, on which hyper stands, cannot do all that is asked of a server.
on_hyper = os.environ.get("TIDEGATE_HTTP2_ENGINE") == "hyper"


def fails_on_hyper(reason: str) -> pytest.MarkDecorator:
    """Expects that the test fails on hyper, and on hyper alone."""
    return pytest.mark.xfail(on_hyper, strict=True, reason=reason)


@pytest.fixture(scope="session")
def binary() -> str:
    """The program under test."""
    path = os.environ.get("TIDEGATE_BIN")
    if not path:
        pytest.exit("TIDEGATE_BIN must be the path of the tidegate program; scripts/test sets it", returncode=4)
    return path


def eventually(done: Callable[[], object], what: str | Callable[[], object], patience: float = PATIENCE) -> float:
    """Polls until `done`, and returns how long it took. `what` names what was waited for, or says it at the end."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < patience, f"waited {patience} s for {what() if callable(what) else what}"
        time.sleep(0.01)
    return time.monotonic() - began


def scrape(http: str) -> str:
    """Returns the page of metrics of the HTTP listener at that URL."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=PATIENCE) as answer:
        return answer.read().decode()


def metric(http: str, name: str) -> float:
    """Returns the value of a metric without labels."""
    return float(re.search(rf"^{re.escape(name)} (\S+)$", scrape(http), re.MULTILINE)[1])


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Makes a certificate for localhost. Returns its file and that of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing; scripts/test installs it")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 60 -subj /CN=localhost"
    command += " -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    command += " -keyout tls.key -out tls.crt"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    return folder / "tls.crt", folder / "tls.key"


class Server:
    """`tidegate serve` on a free port, as a child process."""

    def __init__(self, binary: str, *arguments: str, listen: str = "127.0.0.1:0", log: IO[bytes] | None = None) -> None:
        self.process = subprocess.Popen(
            [binary, "serve", "--listen", listen, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )
        self.is_asked_to_end = False
        self.address = self._announced("listening on ")
        self.url = f"http://{self.address}"

    @cached_property
    def http(self) -> str:
        """The URL of the HTTP listener, which the server announces after the address. `--http` asks for one."""
        return f"http://{self._announced('HTTP on ')}"

    def _announced(self, words: str) -> str:
        """Reads the next announcement, and returns the address behind these words."""
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline().decode().rstrip("\n") if readable else ""
        if not line.startswith(words + "127.0.0.1:"):
            self.process.kill()
            pytest.fail(f"the server announced {line!r}, exit code {self.process.wait()}")
        return line.removeprefix(words)

    def signal(self, number: signal.Signals) -> None:
        self.is_asked_to_end = True
        self.process.send_signal(number)

    def stop(self) -> None:
        """Asks the server to end, and checks that it exits with 0. May be called again."""
        # A second signal would end the server at once, with exit code 130.
        if self.process.poll() is None and not self.is_asked_to_end:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not end within {PATIENCE} s of SIGTERM")
        assert code == 0, f"the server ended with exit code {code}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, failed, *_: object) -> None:
        if failed:
            self.process.kill()
            self.process.wait()
        else:
            self.stop()

    def resident_kib(self) -> int:
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1])


class Client:
    """The generated stubs on one connection: a plain one to that address, or the channel that is given."""

    def __init__(self, address: str = "", channel: grpc.Channel | None = None) -> None:
        self.channel = channel or grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.stub = EventServiceStub(self.channel)

    def publish(self, *events: pb.NewEvent) -> pb.PublishResponse:
        return self.stub.Publish(pb.PublishRequest(events=events), timeout=PATIENCE)

    def subscribe(self, *filters: str, timeout: float = PATIENCE, **fields) -> Stream:
        """Opens a stream, and returns once `subscribed` has come: events published from then on are matched."""
        request = pb.SubscribeRequest(filters=filters, **fields)
        return Stream(self.stub.Subscribe(request, timeout=timeout), request)

    def close(self) -> None:
        self.channel.close()


class Ledger:
    """Audits one stream, response by response, for the guarantees of order and of no silent loss."""

    def __init__(self, request: pb.SubscribeRequest) -> None:
        self.replays = request.HasField("resume_after") or request.replay_last > 0
        self.subscribed: pb.Subscribed | None = None
        # Every event delivered, in order of arrival.
        self.events: list[pb.Event] = []
        self.gaps: list[pb.Gap] = []
        self.heartbeats: list[pb.Heartbeat] = []
        self.caught_up: pb.CaughtUp | None = None
        self.going_away: pb.GoingAway | None = None
        # The index that the next event, or the next counted gap, must have.
        self.next_index = 0
        # Every further event must have a higher sequence.
        self.floor = 0
        self._asked = request.resume_after if request.HasField("resume_after") else None

    @property
    def is_settled(self) -> bool:
        """Whether a position can be stated: not of a `replay_last` before its first event, which decides where it
        begins."""
        begins_later = self.replays and self._asked is None
        return not begins_later or bool(self.events or self.gaps or self.caught_up)

    @property
    def missed(self) -> int:
        return sum(gap.count for gap in self.gaps)

    def enter(self, response: pb.SubscribeResponse) -> tuple[str, object]:
        kind = response.WhichOneof("response")
        assert kind is not None, "a response without content"
        assert (kind == "subscribed") == (self.subscribed is None), f"{kind} out of place"
        assert self.going_away is None, f"{kind} after going_away"
        message = getattr(response, kind)
        getattr(self, f"_on_{kind}")(message)
        if self.subscribed is not None:
            assert self.next_index == self.subscribed.next_index + len(self.events) + self.missed
        return kind, message

    def _on_subscribed(self, subscribed: pb.Subscribed) -> None:
        assert subscribed.client_id and subscribed.subscription_id
        assert subscribed.position.epoch != 0
        assert subscribed.limits.max_events > 0 and subscribed.limits.max_bytes > 0
        assert subscribed.limits.overflow != pb.OVERFLOW_UNSPECIFIED
        self.subscribed = subscribed
        self.next_index = subscribed.next_index
        if not self.replays:
            self.floor = subscribed.position.sequence
        elif self._asked is not None and self._asked.epoch == subscribed.position.epoch:
            self.floor = self._asked.sequence

    def _on_batch(self, batch: pb.Batch) -> None:
        assert batch.events, "an empty batch"
        assert batch.first_index == self.next_index, "the index of a batch has a hole, or repeats"
        for event in batch.events:
            assert event.sequence > self.floor, f"sequence {event.sequence} came after {self.floor}"
            assert event.topic and event.HasField("time")
            self.floor = event.sequence
        self.events.extend(batch.events)
        self.next_index += len(batch.events)

    def _on_gap(self, gap: pb.Gap) -> None:
        uncounted = (pb.GAP_REASON_EXPIRED, pb.GAP_REASON_EPOCH_CHANGED, pb.GAP_REASON_BACKPLANE)
        opening = (pb.GAP_REASON_EXPIRED, pb.GAP_REASON_EPOCH_CHANGED)
        assert gap.reason != pb.GAP_REASON_UNSPECIFIED
        assert gap.count > 0 or gap.reason in uncounted, "a gap that must be counted and is not"
        assert not self.events or gap.reason not in opening, "a gap of the past after the first event"
        if gap.count > 0:
            assert gap.first_index == self.next_index, "the index of a gap has a hole, or repeats"
            self.next_index += gap.count
        assert gap.first_sequence <= gap.last_sequence
        assert gap.count <= gap.last_sequence - gap.first_sequence + 1
        # A gap over another epoch ends before the first event of this one, at sequence 0.
        assert self.floor < gap.first_sequence or gap.reason == pb.GAP_REASON_EPOCH_CHANGED
        # Conflated events lie between the survivors, which are still to come.
        if gap.reason != pb.GAP_REASON_CONFLATED:
            self.floor = gap.last_sequence
        self.gaps.append(gap)

    def _on_heartbeat(self, heartbeat: pb.Heartbeat) -> None:
        self._advance_if_stated(heartbeat, "position")
        self.heartbeats.append(heartbeat)

    def _on_caught_up(self, caught_up: pb.CaughtUp) -> None:
        assert self.replays, "caught up, and no replay was asked for"
        assert self.caught_up is None, "caught up twice"
        self._advance(caught_up.position)
        self.caught_up = caught_up

    def _on_going_away(self, going_away: pb.GoingAway) -> None:
        self._advance_if_stated(going_away, "resume_after")
        self.going_away = going_away

    def _advance_if_stated(self, message, field: str) -> None:
        if message.HasField(field):
            position = getattr(message, field)
            # The server knows where a replay begins before its first event tells; that is never at the beginning of all.
            assert self.is_settled or position.sequence > 0, "a position is stated of which nothing is known yet"
            self._advance(position)
        else:
            assert not self.is_settled, "no position is stated"

    def _advance(self, position: pb.Position) -> None:
        """Records a position that the server states: resuming after it must repeat nothing and miss nothing."""
        assert position.epoch == self.subscribed.position.epoch
        assert position.sequence >= self.floor, "resuming there would repeat events"
        self.floor = position.sequence


class Stream:
    """A subscription that is read only when a test asks for it. Its ledger audits each response."""

    def __init__(self, call, request: pb.SubscribeRequest) -> None:
        self.call = call
        self.ledger = Ledger(request)
        # How many of the ledger's events `take` has returned.
        self._taken = 0
        self.subscribed: pb.Subscribed = self.expect("subscribed")

    def read(self) -> tuple[str, object]:
        """Returns kind and content of the next response. Raises `grpc.RpcError` if the stream has ended."""
        try:
            response = next(self.call)
        except StopIteration:
            pytest.fail("the stream ended with OK")
        return self.ledger.enter(response)

    def expect(self, kind: str):
        """Returns the content of the next response, which must be of that kind."""
        got, message = self.read()
        assert got == kind, f"expected {kind}, got {got}: {message}"
        return message

    def skip_to(self, kind: str):
        """Reads up to a response of that kind, and returns its content."""
        while True:
            got, message = self.read()
            if got == kind:
                return message

    def take(self, count: int) -> list[pb.Event]:
        """Returns the next `count` events, and skips other responses between them."""
        while len(self.ledger.events) < self._taken + count:
            self.read()
        return self._take_up_to(self._taken + count)

    def take_through(self, payload: bytes) -> list[pb.Event]:
        """Returns the next events, up to the one with that payload."""
        looked_at = self._taken
        while True:
            for at in range(looked_at, len(self.ledger.events)):
                if self.ledger.events[at].payload == payload:
                    return self._take_up_to(at + 1)
            looked_at = len(self.ledger.events)
            self.read()

    def replay(self) -> list[pb.Event]:
        """Returns the events up to `caught_up`."""
        self.skip_to("caught_up")
        return self._take_up_to(len(self.ledger.events))

    def _take_up_to(self, end: int) -> list[pb.Event]:
        start, self._taken = self._taken, end
        return self.ledger.events[start:end]

    def ending(self) -> grpc.RpcError:
        """Reads to the end, and returns the status."""
        with pytest.raises(grpc.RpcError) as caught:
            while True:
                self.read()
        return caught.value

    def cancel(self) -> None:
        self.call.cancel()


def admin_calls(channel: grpc.Channel) -> Iterator[Callable[[], object]]:
    """Every method of the admin service, as a call with an empty request."""
    stub = AdminServiceStub(channel)
    for method in admin_pb.DESCRIPTOR.services_by_name["AdminService"].methods:
        request = getattr(admin_pb, method.input_type.name)()
        yield partial(getattr(stub, method.name), request, timeout=PATIENCE)


def new_event(topic: str, payload: bytes = b"", **fields) -> pb.NewEvent:
    return pb.NewEvent(topic=topic, payload=payload, **fields)


def head(response: pb.PublishResponse) -> pb.Position:
    """Returns the position after a published batch."""
    return pb.Position(epoch=response.epoch, sequence=response.last_sequence)


def seconds(value: float) -> Duration:
    return Duration(seconds=int(value), nanos=round(value % 1 * 1e9))


def payloads(events: list[pb.Event]) -> list[bytes]:
    return [event.payload for event in events]


def rich_details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    """The `google.rpc` details of a status. Every status of Tidegate has them."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no grpc-status-details-bin with {error.code()}: {error.details()}"
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
        detail.Unpack(retry)
    # What the details say stands beside them, for languages that cannot read them.
    trailers = dict(error.trailing_metadata())
    assert trailers.get("tidegate-reason") == info.reason
    delay = retry.retry_delay.ToNanoseconds() if retry.HasField("retry_delay") else None
    told = trailers.get("tidegate-retry-after-ms")
    assert told == (None if delay is None else str(-(-delay // 1_000_000)))
    return info, bad_request


def assert_status(error: grpc.RpcError, code: grpc.StatusCode, reason: str, field: str | None = None) -> None:
    assert error.code() == code, f"{error.code()}: {error.details()}"
    assert error.details(), "a status without a message for people"
    info, bad_request = rich_details(error)
    assert (info.domain, info.reason) == ("tidegate", reason)
    if field is not None:
        fields = [violation.field for violation in bad_request.field_violations]
        assert fields == [field]
        assert all(violation.description for violation in bad_request.field_violations)


@contextlib.contextmanager
def refused(reason: str, field: str | None = None, code=grpc.StatusCode.INVALID_ARGUMENT) -> Iterator[None]:
    """Expects that the call inside fails with that status."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert_status(caught.value, code, reason, field)
