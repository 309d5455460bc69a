"""System calls per delivery, counted by strace. The numbers may fall; a higher one is a regression."""

import json
import shutil
import subprocess

import pytest
from support import PATIENCE, Server

SECONDS = 2


def count(binary, tmp_path, *arguments):
    """Runs a load on a server under strace. Returns its system calls per delivery, by name."""
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed; scripts/test installs it")
    counts = tmp_path / "counts"
    with Server(binary) as server:
        tracer = subprocess.Popen(
            [strace, "-f", "-c", "-U", "calls,name", "-o", counts, "-p", str(server.process.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        said = tracer.stderr.readline()
        if "attached" not in said:
            tracer.kill()
            pytest.skip(f"strace may not trace here: {said.strip()}")
        load = [binary, "bench", "fanout", "--server", server.url, "--output", "json", *arguments]
        load += ["--duration", f"{SECONDS}s", "--warm-up", "0s"]
        report = json.loads(subprocess.run(load, check=True, capture_output=True, timeout=PATIENCE).stdout)
        tracer.terminate()
        tracer.communicate(timeout=PATIENCE)
    delivered = report["figures"]["totals"]["delivered"]
    rows = [line.split() for line in counts.read_text().splitlines()]
    return {row[1]: int(row[0]) / delivered for row in rows if len(row) == 2 and row[0].isdigit()}, delivered


def test_single_delivery_is_one_system_call(binary, tmp_path):
    calls, delivered = count(binary, tmp_path, "--subscribers", "20", "--rate", "100")
    assert delivered == 20 * 100 * SECONDS
    assert calls["sendto"] < 1.1, calls
    # Reads are per event. The calls by which threads wake one another depend on the machine, and are not compared.
    assert calls["recvfrom"] < 0.2, calls


def test_deliveries_of_a_connection_at_one_moment_share_a_write(binary, tmp_path):
    calls, _ = count(
        binary, tmp_path, "--subscribers", "200", "--streams-per-connection", "100", "--rate", "100"
    )
    assert calls["sendto"] + calls["recvfrom"] < 0.15, calls


def test_flat_out_many_deliveries_share_a_system_call(binary, tmp_path):
    calls, _ = count(binary, tmp_path, "--subscribers", "20")
    assert calls["sendto"] + calls["recvfrom"] < 0.05, calls
