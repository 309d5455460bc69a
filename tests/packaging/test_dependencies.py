"""Which crate may know which, as cargo resolves them."""

from __future__ import annotations

import json
import subprocess
from functools import cache

import pytest
from rust_source import ROOT

# The direct dependencies of the libraries whose list is short on purpose. A new one is a decision.
DIRECT = {
    "tidegate-core": {"bytes", "slab", "thiserror"},
    "tidegate-http2": {"bytes", "http"},
    "tidegate-client": {
        "bytes",
        "fastrand",
        "futures-core",
        "futures-util",
        "http",
        "http-body",
        "http-body-util",
        "httpdate",
        "hyper-util",
        "prost",
        "prost-types",
        "rustls",
        "rustls-native-certs",
        "thiserror",
        "tidegate-proto",
        "tokio",
        "tokio-rustls",
        "tonic",
        "tonic-types",
        "tower-service",
    },
}

# No transport and no runtime in the core, and none in the engine of HTTP/2; one protocol and nothing of the server's for a
# client; each on its floor.
NEVER = {
    "tidegate-core": {"tokio", "tonic", "hyper", "h2", "http", "futures-core"},
    "tidegate-http2": {"tokio", "tonic", "hyper", "h2", "http-body", "tower-service", "futures-core", "tidegate-core"},
    "tidegate-proto": {"tidegate-core", "tidegate", "tidegate-server"},
    "tidegate": {"tidegate-transport", "tidegate-server", "tidegate-client"},
    "tidegate-transport": {"tidegate-core", "tidegate", "tidegate-server", "tidegate-client"},
    "tidegate-client": {"tidegate-core", "tidegate", "tidegate-transport", "tidegate-server"},
    "tidegate-server": {"tidegate-client", "tidegate-bench", "tidegate-cli"},
    "tidegate-bench": {"tidegate-core", "tidegate", "tidegate-client", "tidegate-server"},
    # It knows what any author of a client may know, and nothing that the client of ours does.
    "tidegate-conformance": {"tidegate-core", "tidegate", "tidegate-transport", "tidegate-client", "tidegate-server"},
}


@cache
def metadata() -> dict:
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300).stdout)


@cache
def packages() -> dict[str, dict]:
    return {package["id"]: package for package in metadata()["packages"]}


@cache
def members() -> dict[str, str]:
    return {packages()[id]["name"]: id for id in metadata()["workspace_members"]}


def direct(name: str) -> set[str]:
    """Without those that only its tests, its build or the models of loom need."""
    return {
        dependency["name"]
        for dependency in packages()[members()[name]]["dependencies"]
        if dependency["kind"] is None and (dependency["name"], dependency["target"]) != ("loom", "cfg(tidegate_loom)")
    }


def tree(name: str) -> set[str]:
    """Everything that is linked to it, at whatever depth and on whatever system."""
    nodes = {node["id"]: node for node in metadata()["resolve"]["nodes"]}
    found, todo = set(), [members()[name]]
    while todo:
        for dep in nodes[todo.pop()]["deps"]:
            linked = any(kind["kind"] is None and kind["target"] != "cfg(tidegate_loom)" for kind in dep["dep_kinds"])
            if linked and dep["pkg"] not in found:
                found.add(dep["pkg"])
                todo.append(dep["pkg"])
    return {packages()[id]["name"] for id in found}


@pytest.mark.parametrize("name", DIRECT)
def test_the_direct_dependencies_are_the_listed(name):
    assert direct(name) == DIRECT[name]


@pytest.mark.parametrize("name", NEVER)
def test_what_a_crate_must_not_know_is_nowhere_in_its_tree(name):
    assert tree(name) & NEVER[name] == set()


def test_the_tree_is_the_whole_tree():
    assert {"tokio", "bytes", "tidegate-proto"} <= tree("tidegate-client")
    assert "loom" not in tree("tidegate-core")
