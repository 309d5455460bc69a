"""Node, by @grpc/grpc-js and @grpc/proto-loader: the ways in which events are lost without a word."""

import json

import grpc
import pytest
from languages import run
from scripted import Ending, ScriptedServer, batch, subscribed
from support import pb

__all__ = ["run"]

pytestmark = pytest.mark.no_server

# Epochs that are chosen at random have at most 53 bits.
LARGEST_RANDOM_EPOCH = 2**53 - 1
LARGEST_EPOCH = 2**64 - 1


@pytest.mark.parametrize(
    ("options", "resume_name", "is_sent"),
    [
        ({}, "resume_after", False),
        ({}, "resumeAfter", True),
        ({"keepCase": True}, "resumeAfter", False),
        ({"keepCase": True}, "resume_after", True),
    ],
)
def test_field_by_another_name_is_dropped(node, run, options, resume_name, is_sent):
    with ScriptedServer([subscribed(5, 10)], [subscribed(5, 10)]) as server:
        run("node", node / "options.js", server.address, json.dumps(options), "position", resume_name)
        server.call()
        assert server.call().request.HasField("resume_after") == is_sent


@pytest.mark.parametrize(
    ("longs", "epoch", "is_exact"),
    [
        ("Number", LARGEST_RANDOM_EPOCH, True),
        ("Number", LARGEST_RANDOM_EPOCH + 2, False),
        ("String", LARGEST_EPOCH, True),
        # Objects of the package `long`.
        (None, LARGEST_EPOCH, True),
    ],
)
def test_number_beyond_53_bits_is_rounded(node, run, longs, epoch, is_exact):
    with ScriptedServer([subscribed(epoch, 10)], [subscribed(epoch, 10)]) as server:
        options = json.dumps({"keepCase": True, "longs": longs})
        run("node", node / "options.js", server.address, options, "position", "resume_after")
        server.call()
        resumed = server.call().request.resume_after
        assert (resumed == pb.Position(epoch=epoch, sequence=10)) == is_exact


def test_leaving_the_loop_leaves_the_stream_open(node, run):
    with ScriptedServer([subscribed(5, 10), batch(0, 11)]) as server:
        leaving = run("node", node / "leaving.js", server.address)
        leaving.skip_to("left")
        assert not server.await_end(timeout=0.5)
        leaving.end_input()
        assert server.await_end()


def test_handler_that_fails_ends_the_stream(node, run):
    with ScriptedServer([subscribed(5, 10), batch(0, 11)]) as server:
        failing = run("node", node / "failing.js", server.address)
        assert failing.skip_to("failed")["message"] == "the handler failed"
        assert server.await_end()


def test_listener_is_called_again_before_it_is_done(node, run):
    with ScriptedServer([subscribed(5, 10), batch(0, 11), batch(1, 12)]) as server:
        listening = run("node", node / "listening.js", server.address)
        assert [listening.next()["type"] for _ in range(3)] == ["begins"] * 3


def test_responses_that_were_not_read_go_with_an_ending(node, run):
    responses = [batch(index, 11 + index) for index in range(200)]
    with ScriptedServer([subscribed(5, 10), *responses, Ending(grpc.StatusCode.UNAVAILABLE)]) as server:
        ended = run("node", node / "unread.js", server.address).skip_to("ended")
        assert ended["code"] == grpc.StatusCode.UNAVAILABLE.value[0]
        assert ended["count"] < 201
