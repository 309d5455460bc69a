"""The generators of other languages take the `.proto` files as they are, and make packages that can be used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from packages import ROOT, needs

PROTO = ROOT / "crates" / "tidegate-proto" / "proto"
FILES = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))

# Longer ones are no pleasure to open, and javac and editors are slow on them.
MOST_LINES_OF_A_CLASS = 3_000


needs_protoc = needs("protoc", "apt-get install protobuf-compiler")


def generate(language: str, folder: Path) -> dict[str, str]:
    """Returns the text of each file that the generator of a language makes, by its path."""
    command = ["protoc", "-I", str(PROTO), f"--{language}_out={folder}", *FILES]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


@needs_protoc
def test_java_gets_a_file_for_each_message(tmp_path):
    made = generate("java", tmp_path)
    assert {"Event", "SubscribeRequest", "EventServiceProto", "AdminServiceProto"} <= {Path(path).stem for path in made}
    for path, text in made.items():
        assert path.startswith("com/tidegate/v1/")
        assert "package com.tidegate.v1;" in text
        assert text.count("\n") <= MOST_LINES_OF_A_CLASS, path


@needs_protoc
def test_java_names_of_messages_and_outer_classes_differ(tmp_path):
    """Where two are equal, the generator renames the outer class to what nobody expects: `EventServiceOuterClass`."""
    assert not [path for path in generate("java", tmp_path) if "OuterClass" in path]


@pytest.mark.parametrize(
    ("language", "file", "said"),
    [
        ("csharp", "EventService.cs", "namespace Tidegate.V1 {"),
        ("kotlin", "com/tidegate/v1/EventKt.kt", "package com.tidegate.v1"),
        ("objc", "tidegate/v1/EventService.pbobjc.h", "@interface TXXEvent "),
        ("php", "Tidegate/V1/Event.php", "namespace Tidegate\\V1;"),
        ("php", "Tidegate/V1/GPBMetadata/EventService.php", "namespace Tidegate\\V1\\GPBMetadata;"),
        ("ruby", "tidegate/v1/event_service_pb.rb", "module Tidegate\n  module V1\n"),
    ],
)
@needs_protoc
def test_other_languages_get_their_own_names(language, file, said, tmp_path):
    made = generate(language, tmp_path)
    assert said in made[file]


@needs_protoc
@needs("protoc-gen-go", "apt-get install protoc-gen-go")
@needs("protoc-gen-go-grpc", "apt-get install protoc-gen-go-grpc")
def test_go_gets_one_package(tmp_path):
    made = generate("go", tmp_path) | generate("go-grpc", tmp_path)
    assert len(made) == 2 * len(FILES)
    for path, text in made.items():
        assert path.startswith("github.com/tidegate/tidegate/gen/go/tidegate/v1/")
        assert re.search(r"^package tidegatev1$", text, re.MULTILINE), path
