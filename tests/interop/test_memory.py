"""The memory of the server's process, compared with its memory budget."""

import sys

import pytest
from support import PATIENCE, Client, Server, eventually, new_event, pb

MIB = 1 << 20
BUDGET = 512 * MIB
STREAMS = 100
BATCH = 500


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("payload", [1_000, 5_000], ids=lambda size: f"{size} B")
def test_stalled_subscribers_stay_in_budget_and_release_it(binary, payload):
    with Server(binary, "--memory-budget", "512MiB") as server:
        ramp(server, payload)


def ramp(server, payload):
    stalled = Client(server.address)
    # Each has its own filter, so that no events are shared, and all of them could hold more than the budget.
    limits = pb.Limits(max_events=65_536, max_bytes=8 * MIB)
    streams = [stalled.subscribe(f"load.{number}", limits=limits, timeout=10 * PATIENCE) for number in range(STREAMS)]
    publisher = Client(server.address)

    # The terms of docs/memory.md beside the budget: the program, the streams, one publisher.
    publisher.publish(*(new_event("warm.up", bytes(payload)) for _ in range(BATCH)))
    beside = server.resident_kib() * 1024

    body = b"x" * payload
    total = 3 * BUDGET // (2 * payload) // BATCH * BATCH
    most = resident = 0
    for start in range(0, total, BATCH):
        publisher.publish(*(new_event(f"load.{number % STREAMS}", body) for number in range(start, start + BATCH)))
        resident = server.resident_kib() * 1024 - beside
        most = max(most, resident)
    print(f"{payload} B: at most {most / BUDGET:.3f} of the budget, {resident / BUDGET:.3f} at the end")
    assert most <= 1.1 * BUDGET, f"{most / MIB:.0f} MiB are held, and the budget is {BUDGET // MIB} MiB"
    assert resident >= 0.9 * BUDGET, f"{resident / MIB:.0f} MiB: what is counted is not there"

    # The oldest, the newest, and one between: a gap tells each how much the budget took.
    for number in (0, STREAMS // 2, STREAMS - 1):
        publisher.publish(new_event(f"load.{number}", b"end"))
        streams[number].take_through(b"end")
        ledger = streams[number].ledger
        assert pb.GAP_REASON_EVICTED in {gap.reason for gap in ledger.gaps}
        assert len(ledger.events) + ledger.missed == total // STREAMS + 1

    stalled.close()
    # Only history is left, at most 10,000 events or 64 MiB.
    eventually(
        lambda: server.resident_kib() * 1024 - beside <= 0.3 * BUDGET,
        lambda: f"memory to be given back: {server.resident_kib() // 1024} MiB stayed resident",
    )
    publisher.close()
