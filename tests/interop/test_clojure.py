"""Clojure on grpc-java: the pattern that Tidegate began as, and the ways in which events are lost without a word."""

import signal
import threading
import time

import pytest
from languages import TRAPS, Lines, run
from scripted import ScriptedServer, batch, subscribed
from support import PATIENCE

__all__ = ["run"]

pytestmark = pytest.mark.no_server


@pytest.fixture
def start(clojure):
    children = []

    def start(*arguments):
        children.append(Lines([clojure, "-m", *arguments]))
        return children[-1]

    yield start
    for child in children:
        child.stop()


@pytest.fixture
def pattern(start):
    """The pattern's server, and its address."""
    server = start("pattern.server")
    return server, server.line().removeprefix("listening on ")


# ===== The pattern =====


def test_pattern_sends_each_notice_to_every_client(start, pattern):
    server, address = pattern
    ann, bob = start("pattern.client", address, "ann"), start("pattern.client", address, "bob")
    assert sorted(server.line() for _ in range(2)) == ["ann listens", "bob listens"]

    server.write("one\n")
    assert (ann.line(), bob.line()) == ("one", "one")

    # A client that goes is forgotten at once, and is none of the others' business.
    bob.process.kill()
    assert server.line() == "bob left, 0 dropped"
    server.write("two\n")
    assert ann.line() == "two"

    server.process.stdin.close()
    assert ann.rest() == ["-- UNAVAILABLE: the server is shutting down"]
    assert server.rest() == ["ann left, 0 dropped"]
    assert server.process.wait(PATIENCE) == 0


def test_pattern_drops_the_oldest_and_the_client_cannot_know(start, pattern):
    server, address = pattern
    ann = start("pattern.client", address, "ann")
    assert server.line() == "ann listens"
    server.write("first\n")
    assert ann.line() == "first"

    ann.process.send_signal(signal.SIGSTOP)
    # Far more than what the transport holds and the queue of 64.
    total = 2000
    server.write("".join(f"{number} {'x' * 8192}\n" for number in range(total)))
    server.process.stdin.close()
    ann.process.send_signal(signal.SIGCONT)

    *notices, ending = ann.rest()
    assert ending == "-- UNAVAILABLE: the server is shutting down"
    numbers = [int(notice.split()[0]) for notice in notices]
    assert numbers == sorted(set(numbers))
    (left,) = server.rest()
    dropped = int(left.removeprefix("ann left, ").removesuffix(" dropped"))
    assert dropped > 0
    # The rest was in the queue at the end, and nobody counts that.
    assert total - 64 <= len(numbers) + dropped <= total


def test_late_cancel_leaves_the_new_stream_of_the_same_id_alone(start, pattern):
    server, address = pattern
    old = start("pattern.client", address, "ann")
    assert server.line() == "ann listens"
    new = start("pattern.client", address, "ann")
    assert sorted(server.line() for _ in range(2)) == ["ann left, 0 dropped", "ann listens"]
    assert old.rest() == ["-- ABORTED: a newer stream has this id"]

    server.write("one\n")
    assert new.line() == "one"


# ===== Traps =====


def test_iterator_seq_reads_32_responses_before_it_shows_the_first(clojure, run):
    is_complete = threading.Event()
    # It takes 32 of them, and asks whether there is one more.
    responses = [subscribed(5, 10), *(batch(index, 11 + index) for index in range(32))]
    with ScriptedServer([*responses[:32], is_complete, responses[32]]) as server:
        chunked = run(clojure, TRAPS / "chunked.clj", server.address)
        server.call()
        # Nothing to await: this is about what does not come.
        time.sleep(1)
        completed = time.monotonic()
        is_complete.set()
        chunked.skip_to("first")
        assert chunked.arrived > completed


def test_handler_that_fails_ends_the_stream(clojure, run):
    with ScriptedServer([subscribed(5, 10), batch(0, 11)]) as server:
        failing = run(clojure, TRAPS / "failing.clj", server.address)
        assert failing.skip_to("failed")["message"] == "the handler failed"
        assert server.await_end()
