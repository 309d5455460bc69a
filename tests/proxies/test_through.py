"""Publishing, subscribing and resuming through nginx, HAProxy and Envoy, with the configurations that are shipped."""

from __future__ import annotations

import http.client
import json
import queue
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from proxies import Backend, HaProxy, HaProxyTcp, Nginx, Proxy, ProxyClient
from support import (
    PATIENCE,
    Client,
    admin_calls,
    assert_status,
    eventually,
    head,
    new_event,
    payloads,
    pb,
    refused,
    seconds,
)
from tidegate.v1 import admin_service_pb2 as admin
from tidegate.v1.admin_service_pb2_grpc import AdminServiceStub

MIB = 1 << 20


def requests(outgoing: queue.Queue):
    """The requests of a PublishStream, as they are put into the queue. None ends them."""
    while (request := outgoing.get()) is not None:
        yield request


# ===== Configuration =====


def test_nothing_in_the_configuration_is_warned_of(proxy):
    said = proxy.log.read_text().splitlines()
    # From nginx 1.25.1 on `http2` is a line of its own, as the configuration says.
    warned = [line for line in said if re.search(r"\[(WARNING|warn|ALERT|alert|emerg)\]", line) and "http2" not in line]
    assert not warned


# ===== Calls =====


def test_publish_subscribe_and_resume(client, connect):
    stream = client.subscribe("a.*")
    position = head(client.publish(new_event("a.b", b"1")))
    assert payloads(stream.take(1)) == [b"1"]
    stream.cancel()
    client.publish(new_event("a.b", b"2"), new_event("c", b"3"), new_event("a.d", b"4"))

    resumed = connect().subscribe("a.*", resume_after=position)
    assert payloads(resumed.replay()) == [b"2", b"4"]
    assert not resumed.ledger.gaps


def test_status_comes_through_with_its_details(client):
    with refused("INVALID_FILTER", "filters[0]"):
        client.subscribe("a.>.b")
    # Details that are longer than the buffer for headers that a proxy has by default.
    long = "x" * 3000
    with refused("INVALID_FILTER", "filters[0]"):
        client.subscribe(f"{long}..{long}")


def test_refusal_in_the_middle_of_a_publish_stream_comes_with_its_reason(client):
    """The client is still sending when the status comes, so proxies see a request that is not over."""
    outgoing: queue.Queue = queue.Queue()
    answers = client.stub.PublishStream(requests(outgoing), timeout=PATIENCE)
    for number in range(3):
        outgoing.put(pb.PublishRequest(events=[new_event("a", b"%d" % number)]))
        assert next(answers).count == 1
    outgoing.put(pb.PublishRequest(events=[new_event("a.*", b"")]))
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert_status(caught.value, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TOPIC")
    outgoing.put(None)


def test_large_batch_that_is_refused_comes_with_its_reason(client):
    batch = [new_event("a", bytes(100_000)) for _ in range(30)] + [new_event("a.*")]
    with refused("INVALID_TOPIC", "events[30].topic"):
        client.publish(*batch)
    with refused("TOO_MANY_EVENTS"):
        client.publish(*[new_event("a", bytes(1000))] * 2000)


def test_takeover_is_told(client, connect):
    old = client.subscribe("a", client_id="ann")
    connect().subscribe("a", client_id="ann")
    error = old.ending()
    assert_status(error, grpc.StatusCode.ABORTED, "TAKEN_OVER")
    # For languages that cannot read the details.
    assert dict(error.trailing_metadata())["tidegate-reason"] == "TAKEN_OVER"


def test_two_mebibytes_through_one_publish_stream(client, backend):
    direct = Client(backend.address)
    stream = direct.subscribe("a", limits=pb.Limits(max_events=1000, max_bytes=8 * MIB))
    sent = [bytes([number]) * (64 << 10) for number in range(64)]

    answers = client.stub.PublishStream(
        (pb.PublishRequest(events=[new_event("a", payload)]) for payload in sent), timeout=PATIENCE
    )

    assert [answer.count for answer in answers] == [1] * len(sent)
    assert payloads(stream.take(len(sent))) == sent
    direct.close()


def test_an_event_of_a_mebibyte(client):
    payload = bytes(MIB - 1000)
    stream = client.subscribe("a")
    client.publish(new_event("a", payload))
    assert payloads(stream.take(1)) == [payload]


def test_events_and_answers_come_one_by_one(client, connect):
    """Nothing on the way waits for more: each event, and each answer, is there before the next is sent."""
    outgoing: queue.Queue = queue.Queue()
    stream = connect().subscribe("a")
    answers = client.stub.PublishStream(requests(outgoing), timeout=PATIENCE)
    for number in range(20):
        outgoing.put(pb.PublishRequest(events=[new_event("a", b"%d" % number)]))
        assert next(answers).count == 1
        assert payloads(stream.take(1)) == [b"%d" % number]
    outgoing.put(None)
    assert list(answers) == []


def test_heartbeats_come_through(client):
    stream = client.subscribe("a", heartbeat_interval=seconds(1))
    for _ in range(2):
        stream.expect("heartbeat")


def test_a_hundred_subscriptions_on_one_connection(client):
    streams = [client.subscribe(f"a.{number}") for number in range(100)]
    client.publish(*(new_event(f"a.{number}", b"%d" % number) for number in range(100)))
    for number, stream in enumerate(streams):
        assert payloads(stream.take(1)) == [b"%d" % number]


def test_a_stream_that_is_cancelled_frees_its_place(client, backend):
    streams = [client.subscribe("a") for _ in range(5)]
    backend.await_metric("tidegate_subscriptions", 5)
    for stream in streams:
        stream.cancel()
    backend.await_metric("tidegate_subscriptions", 0)


def test_a_connection_that_breaks_frees_the_places_of_its_streams(connect, backend):
    client = connect()
    for _ in range(5):
        client.subscribe("a")
    client.close()
    backend.await_metric("tidegate_subscriptions", 0)


def test_health_is_passed_on_and_watched(client, backend):
    # SERVING is 1 and NOT_SERVING 2, in field 1.
    check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=PATIENCE) == b"\x08\x01"
    watched = client.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=PATIENCE)
    assert next(watched) == b"\x08\x01"
    # A stream that is open, so that the drain takes a moment.
    unread = client.subscribe("a")
    backend.server.signal(signal.SIGTERM)
    assert next(watched) == b"\x08\x02"
    assert_status(unread.ending(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def test_reload_of_nginx_ends_no_stream(backend, certificate, tmp_path):
    if shutil.which("nginx") is None:
        pytest.skip("nginx is missing: scripts/test unpacks it from Debian's package")
    with Nginx(tmp_path, certificate, backend) as proxy, ProxyClient(proxy, certificate) as client:
        stream = client.subscribe("a")
        before = workers(proxy)
        proxy.process.send_signal(signal.SIGHUP)
        eventually(lambda: workers(proxy) - before, "a new worker of nginx")
        with ProxyClient(proxy, certificate) as publisher:
            publisher.publish(new_event("a", b"1"))
        assert payloads(stream.take(1)) == [b"1"]


def workers(proxy: Proxy) -> set[str]:
    pid = proxy.process.pid
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


# ===== What is not passed on =====


def test_nobody_reaches_the_admin_service(client, backend):
    # It is served to those on this machine, where the proxy is.
    with grpc.insecure_channel(backend.address) as channel:
        AdminServiceStub(channel).GetServer(admin.GetServerRequest(), timeout=PATIENCE)
    for call in admin_calls(client.channel):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        # Envoy says nothing.
        assert "proxy" in (caught.value.details() or "proxy")
    client.publish(new_event("a"))


def test_statuses_of_a_proxy_have_the_type_of_grpc(kind, backend, certificate, tmp_path):
    """Libraries differ in what they make of an answer of another type: the one for Go takes no status from it."""
    # By HTTP/1.1, which shows the headers that libraries of gRPC hide.
    changes = {
        "nginx": {},
        "haproxy": {"alpn h2": "alpn h2,http/1.1"},
        "envoy": {"alpn_protocols: [h2]": "alpn_protocols: [h2, http/1.1]", "codec_type: HTTP2": "codec_type: AUTO"},
    }
    with kind(tmp_path, certificate, backend, **changes[kind.PROGRAM]) as proxy:
        trusting = ssl.create_default_context(cafile=str(certificate.chain))

        def ask(method: str) -> tuple[int, str | None, str | None]:
            connection = http.client.HTTPSConnection("localhost", proxy.port, context=trusting, timeout=PATIENCE)
            connection.request("POST", method, headers={"content-type": "application/grpc", "te": "trailers"})
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status, answer.getheader("content-type"), answer.getheader("grpc-status")

        assert ask("/tidegate.v1.AdminService/Drain") == (200, "application/grpc", "12")
        assert ask("/") == (200, "application/grpc", "12")
        backend.stop()
        publish = "/tidegate.v1.EventService/Publish"
        # HAProxy notices after a moment, and until then has a page with 503.
        eventually(lambda: ask(publish) == (200, "application/grpc", "14"), lambda: f"a status: {ask(publish)}")


# ===== Bodies =====


def test_nginx_needs_to_be_told_that_bodies_have_no_end(binary, backend, certificate, tmp_path):
    """The reason for `client_max_body_size` in packaging/nginx/tidegate.conf."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is missing: scripts/test unpacks it from Debian's package")
    batches = (pb.PublishRequest(events=[new_event("a", bytes(64 << 10))]) for _ in range(64))
    with Nginx(tmp_path, certificate, backend, **{"client_max_body_size 0;": ""}) as proxy:
        with ProxyClient(proxy, certificate) as client, pytest.raises(grpc.RpcError):
            list(client.stub.PublishStream(batches, timeout=PATIENCE))


# ===== Slow clients =====


def test_a_client_that_does_not_read_neither_fills_the_proxy_nor_delays_others(client, connect, proxy, backend):
    stalled = connect().subscribe("a", limits=pb.Limits(max_events=100, max_bytes=MIB))
    reader = connect().subscribe("a", limits=pb.Limits(max_events=10_000, max_bytes=8 * MIB))
    client.publish(new_event("a", bytes(10_000)))
    reader.take(1)
    before = proxy.resident_kib()

    for number in range(40):
        client.publish(*(new_event("a", b"%d" % number + bytes(10_000)) for _ in range(50)))
        reader.take(50)

    # 20 MB were published. Beside two windows of HTTP/2 and the sockets' buffers, nothing of it stays in the proxy.
    assert proxy.resident_kib() - before < 4096
    # The rest waited in the server, and was counted there.
    client.publish(new_event("a", b"end"))
    stalled.take_through(b"end")
    assert stalled.ledger.missed > 1000
    assert len(stalled.ledger.events) + stalled.ledger.missed == 2002


def read_beside_a_stream_that_is_not_read(client, publisher, timeout=PATIENCE):
    """Two streams of one client: the one that is not read must not stop the one that is."""
    stalled = client.subscribe("a", limits=pb.Limits(max_events=100, max_bytes=MIB))
    reader = client.subscribe("b", timeout=timeout)
    for _ in range(20):
        publisher.publish(*(new_event("a", bytes(10_000)) for _ in range(50)))
    for number in range(10):
        publisher.publish(new_event("b", b"%d" % number))
        assert payloads(reader.take(1)) == [b"%d" % number]
    stalled.cancel()


def test_slow_stream_of_a_connection_delays_no_other_of_it(connect, client):
    read_beside_a_stream_that_is_not_read(client, connect())


@pytest.fixture
def sharing(backend, certificate, tmp_path) -> Iterator[Callable[[], ProxyClient]]:
    """Clients of an HAProxy whose calls share connections to the server."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is missing: scripts/test unpacks it from Debian's package")
    # Each thread has connections of its own.
    changes = {" max-reuse 0": "", "mode http": "mode http\n http-reuse always", "global\n": "global\n nbthread 1\n"}
    with HaProxy(tmp_path, certificate, backend, **changes) as proxy, ExitStack() as clients:
        yield lambda: clients.enter_context(ProxyClient(proxy, certificate))


def test_many_subscriptions_of_many_clients_over_one_connection_to_the_server(sharing, backend):
    streams = [sharing().subscribe("a", client_id=f"client-{number}") for number in range(20)]
    # The publisher's calls go there, too.
    sharing().publish(new_event("a", b"1"))
    assert [payloads(stream.take(1)) for stream in streams] == [[b"1"]] * 20
    assert backend.metric("tidegate_connections") == 1
    backend.stop()
    for stream in streams:
        assert_status(stream.ending(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def test_haproxy_needs_a_connection_for_each_call(sharing, backend):
    """The reason for `max-reuse 0` in packaging/haproxy/tidegate.cfg."""
    said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, re.search(r"version (\d+)\.(\d+)", said).groups())) >= (3, 1):
        # From there on a stream has buffers of its own, `tune.h2.be.rxbuf`.
        return
    direct = Client(backend.address)
    with pytest.raises(grpc.RpcError) as caught:
        read_beside_a_stream_that_is_not_read(sharing(), direct, timeout=3)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
    direct.close()


# ===== Connections that are passed on as they are =====


def test_tls_and_the_certificates_of_clients_are_the_servers_where_haproxy_passes_connections_on(
    binary, certificate, tmp_path
):
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is missing: scripts/test unpacks it from Debian's package")
    (tmp_path / "rules").write_text(
        '[[rule]]\nprincipals = ["localhost"]\npublish = { allow = [">"] }\nsubscribe = { allow = [">"] }\n'
    )
    # The certificate is its own authority, and the client shows it too.
    arguments = f"--tls-certificate {certificate.chain} --tls-key {certificate.key} --tls-client-ca {certificate.chain}"
    arguments += f" --auth-rules {tmp_path}/rules --connections-max-age 1h"
    with Backend(binary, *arguments.split()) as backend, HaProxyTcp(tmp_path, certificate, backend) as proxy:
        with ProxyClient(proxy, certificate) as stranger, pytest.raises(grpc.RpcError) as caught:
            stranger.publish(new_event("a"))
        # Without a certificate there is no connection.
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with ProxyClient(proxy, certificate, shows_it=True) as client, ProxyClient(
            proxy, certificate, shows_it=True
        ) as publisher:
            read_beside_a_stream_that_is_not_read(client, publisher)


# ===== The server goes =====


def test_a_drain_tells_each_stream_where_to_resume(connect, backend):
    busy, idle = connect().subscribe("a"), connect().subscribe("b")
    position = head(connect().publish(new_event("a", b"1")))
    assert payloads(busy.take(1)) == [b"1"]

    backend.stop()

    for stream in (busy, idle):
        assert_status(stream.ending(), grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert stream.ledger.going_away.resume_after == position


def test_a_drain_tells_publishers(client, backend):
    outgoing: queue.Queue = queue.Queue()
    answers = client.stub.PublishStream(requests(outgoing), timeout=PATIENCE)
    outgoing.put(pb.PublishRequest(events=[new_event("a")]))
    assert next(answers).count == 1

    backend.server.signal(signal.SIGTERM)

    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert_status(caught.value, grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    outgoing.put(None)
    backend.stop()


def test_connections_that_end_by_their_age_cost_no_call(kind, binary, certificate, tmp_path):
    """The connections between proxy and server end while calls are made: each has its answer, each stream its reason."""
    with Backend(binary, "--connections-max-age", "1s") as backend, kind(tmp_path, certificate, backend) as proxy:
        with ProxyClient(proxy, certificate) as client:
            stream = client.subscribe("b")
            published, until = 0, time.monotonic() + 3
            while time.monotonic() < until:
                client.publish(new_event("a"))
                published += 1
            assert backend.metric("tidegate_events_published_total") == published
            assert_status(stream.ending(), grpc.StatusCode.UNAVAILABLE, "MAX_CONNECTION_AGE")


def test_server_that_is_killed_ends_streams_as_unavailable_or_internal(client, backend):
    stream = client.subscribe("a")
    backend.server.process.kill()
    backend.server.process.wait()
    backend.server.stop = lambda: None
    # A client comes back after either; which one it is, is for the proxy to say.
    assert stream.ending().code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    )


def test_without_a_server_calls_are_unavailable(client, backend):
    client.publish(new_event("a"))
    backend.stop()
    for call in (lambda: client.publish(new_event("a")), lambda: client.subscribe("a")):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, caught.value.details()


def follow(binary, proxy, certificate, *arguments) -> subprocess.Popen:
    child = subprocess.Popen(
        [binary, "sub", *arguments, "--output", "json", "--server", proxy.url, "--tls-ca", certificate.chain],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A child that says nothing fails its test, and does not hang it.
    timer = threading.Timer(PATIENCE, child.kill)
    timer.daemon = True
    timer.start()
    return child


def skip_to(child: subprocess.Popen, kind: str) -> None:
    """Reads up to a line of that kind."""
    while line := child.stdout.readline():
        if json.loads(line)["type"] == kind:
            return
    pytest.fail(f"no {kind} came: {child.stderr.read()}")


def test_sub_comes_back_when_the_server_does(binary, proxy, certificate, backend, client):
    comes_back(binary, proxy, certificate, backend, client)


# The lines that turn the pages of a proxy into statuses of gRPC.
STATUSES = {
    "nginx": {"error_page 502 503 504 = @unavailable;": ""},
    "haproxy": {"if { nbsrv(tidegate) eq 0 }": "if FALSE"},
    # It has none for calls of gRPC.
    "envoy": {},
}


@pytest.fixture
def with_pages(kind: type[Proxy], backend, certificate, tmp_path) -> Iterator[Proxy]:
    """A proxy that answers with pages for people where the server does not answer, as proxies do."""
    with kind(tmp_path, certificate, backend, **STATUSES[kind.PROGRAM]) as proxy:
        yield proxy


def test_page_of_a_proxy_is_unavailable_too(with_pages, binary, certificate, backend):
    with ProxyClient(with_pages, certificate) as client:
        comes_back(binary, with_pages, certificate, backend, client)
        backend.stop()
        with pytest.raises(grpc.RpcError) as caught:
            client.publish(new_event("a"))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "code", "exit_code"),
    [
        (400, "INTERNAL", None),
        (401, "UNAUTHENTICATED", 4),
        (403, "PERMISSION_DENIED", 4),
        (404, "UNIMPLEMENTED", 1),
        (429, "UNAVAILABLE", None),
        (502, "UNAVAILABLE", None),
        (503, "UNAVAILABLE", None),
        (504, "UNAVAILABLE", None),
    ],
)
def test_pages_of_nginx_mean_what_grpc_says(binary, backend, certificate, tmp_path, answer, code, exit_code):
    """grpcio and `tidegate sub` take each of them for the same; `sub` ends with a code, or comes back again."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is missing: scripts/test unpacks it from Debian's package")
    changes = STATUSES["nginx"] | {"/tidegate.v1.EventService/ {": f"/tidegate.v1.EventService/ {{ return {answer};"}
    with Nginx(tmp_path, certificate, backend, **changes) as proxy:
        with ProxyClient(proxy, certificate) as client, pytest.raises(grpc.RpcError) as caught:
            client.publish(new_event("a"))
        assert caught.value.code().name == code
        child = follow(binary, proxy, certificate, "a")
        if exit_code is None:
            said = json.loads(child.stdout.readline())
            child.kill()
            child.communicate()
            assert (said["type"], said["code"]) == ("reconnecting", code) and str(answer) in said["message"], said
        else:
            _, errors = child.communicate(timeout=PATIENCE)
            assert child.returncode == exit_code and str(answer) in errors, errors


def comes_back(binary, proxy, certificate, backend, client):
    """`tidegate sub` sees the server go, a proxy without a server, and the server come again."""
    child = follow(binary, proxy, certificate, "a", "--count", "2")
    try:
        skip_to(child, "subscribed")
        client.publish(new_event("a", b"1"))
        assert json.loads(child.stdout.readline())["payload"] == "1"
        backend.stop()
        # Once for the stream that ended, and once for the answer of a proxy without a server.
        for _ in range(2):
            skip_to(child, "reconnecting")
        assert child.poll() is None, child.stderr.read()
        backend.start_again()
        skip_to(child, "subscribed")
        published = subprocess.run([binary, "pub", "a", "2", "--server", backend.server.url], timeout=PATIENCE)
        assert published.returncode == 0
        output, errors = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, errors
        assert [json.loads(line)["payload"] for line in output.splitlines() if '"event"' in line] == ["2"]
    finally:
        child.kill()
        child.communicate()
