"""Python, by grpcio: the ways in which an author loses events, or a stream, without a word."""

import multiprocessing
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from scripted import Ending, ScriptedServer, batch, subscribed
from support import CHANNEL_OPTIONS, PATIENCE, Server, pb
from tidegate.v1.event_service_pb2_grpc import EventServiceStub

REQUEST = pb.SubscribeRequest(filters=["a.b"])


def channel(address, *options):
    return grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *options])


@pytest.mark.no_server
def test_leaving_the_loop_leaves_the_stream_open():
    with ScriptedServer([subscribed(5, 10), batch(0, 11)]) as server, channel(server.address) as connection:
        call = EventServiceStub(connection).Subscribe(REQUEST)
        for _ in call:
            break
        assert not server.await_end(timeout=0.5)
        call.cancel()
        assert server.await_end()


@pytest.mark.no_server
def test_cancel_by_another_thread_ends_a_loop_that_waits():
    with ScriptedServer([subscribed(5, 10)]) as server, channel(server.address) as connection:
        call = EventServiceStub(connection).Subscribe(REQUEST)
        endings = []
        is_waiting = threading.Event()

        def read():
            try:
                for _ in call:
                    is_waiting.set()
            except grpc.RpcError as ending:
                endings.append(ending.code())

        reader = threading.Thread(target=read)
        reader.start()
        assert is_waiting.wait(PATIENCE)
        call.cancel()
        reader.join(PATIENCE)
        assert endings == [grpc.StatusCode.CANCELLED]


@pytest.mark.no_server
def test_event_beyond_the_default_limit_ends_the_stream_by_the_library_itself():
    large = [subscribed(5, 10), batch(0, 11, payload=b"x" * (5 << 20))]
    with ScriptedServer(large, large) as server, channel(server.address) as connection:
        for _ in range(2):
            call = EventServiceStub(connection).Subscribe(REQUEST)
            assert next(call).WhichOneof("response") == "subscribed"
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            # The code of a client that is too slow, and resuming brings the same event.
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "tidegate-reason" not in dict(caught.value.trailing_metadata() or ())
            assert rpc_status.from_call(caught.value) is None


@pytest.mark.no_server
def test_loop_over_a_stream_that_ends_with_ok_ends_without_a_word():
    streams = [[subscribed(5, 10), Ending(grpc.StatusCode.OK)]]
    with ScriptedServer(*streams) as server, channel(server.address) as connection:
        responses = list(EventServiceStub(connection).Subscribe(REQUEST))
        assert [response.WhichOneof("response") for response in responses] == ["subscribed"]


def test_deadline_covers_a_stream_to_its_end(server):
    with channel(server.address) as connection:
        call = EventServiceStub(connection).Subscribe(REQUEST, timeout=0.5)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_delay_and_reason_are_in_the_details(binary):
    with Server(binary, "--quotas-address-subscriptions", "1") as server, channel(server.address) as connection:
        stub = EventServiceStub(connection)
        held = stub.Subscribe(REQUEST)
        next(held)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Subscribe(REQUEST))
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in rpc_status.from_call(caught.value).details:
            detail.Unpack(info)
            detail.Unpack(retry)
        assert info.reason == "QUOTA_EXCEEDED"
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
        held.cancel()


def subscribe_in_child(address, heads):
    with grpc.insecure_channel(address) as connection:
        response = next(EventServiceStub(connection).Subscribe(REQUEST, timeout=PATIENCE))
        heads.put(response.subscribed.position.sequence)


def test_process_that_makes_its_own_channel_subscribes(server):
    with channel(server.address) as connection:
        call = EventServiceStub(connection).Subscribe(REQUEST)
        next(call)
        context = multiprocessing.get_context("spawn")
        heads = context.Queue()
        child = context.Process(target=subscribe_in_child, args=(server.address, heads))
        child.start()
        assert heads.get(timeout=PATIENCE) == 0
        child.join(PATIENCE)
        call.cancel()
