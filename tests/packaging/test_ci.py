"""The hosted workflow runs what `.ci/run` runs, and no pull request is green without all of it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from rust_source import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def workflow() -> dict:
    return yaml.safe_load(WORKFLOW.read_text())


def parts(script: str) -> set[str]:
    listed = subprocess.run([ROOT / script, "--list"], check=True, capture_output=True, text=True, timeout=60)
    return set(listed.stdout.split())


def test_the_jobs_together_run_every_part():
    ran: dict[str, set[str]] = {".ci/run": set(), "scripts/test": set()}
    for row in workflow()["jobs"]["check"]["strategy"]["matrix"]["include"]:
        command = [word for word in shlex.split(row["run"]) if not re.match(r"\w+=", word)]
        ran[command[0]] |= set(command[1:])
    # That part runs where it is named alone, and `.ci/run` names it.
    assert ran["scripts/test"] == parts("scripts/test") - {"slow"}
    assert ran[".ci/run"] == parts(".ci/run") - {"test"}


def test_everything_that_is_slow_runs_before_a_change_lands():
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^part_slow\(\) \{\n    run_step '[^']*' scripts/test slow\n\}", script, re.MULTILINE)
    # A test that waits for longer than a minute has the marker, and the other parts leave it out.
    tests = (ROOT / "scripts" / "test").read_text()
    assert re.search(r"run_pytest .*-m 'not slow' tests/proxies$", tests, re.MULTILINE)
    assert re.search(r"run_pytest -m slow tests/proxies$", tests, re.MULTILINE)


def test_one_job_is_green_only_if_all_are():
    jobs = workflow()["jobs"]
    assert set(jobs["green"]["needs"]) == set(jobs) - {"green"}
    assert jobs["green"]["if"] == "always()"
    steps = jobs["green"]["steps"]
    assert [step["run"] for step in steps] == ['test "$RESULT" = success']
    assert steps[0]["env"] == {"RESULT": "${{ needs.check.result }}"}


def test_the_workflow_may_only_read():
    assert workflow()["permissions"] == {"contents": "read"}


@pytest.mark.skipif(shutil.which("check-jsonschema") is None, reason="check-jsonschema is missing: pip install it")
@pytest.mark.parametrize(
    ("schema", "file"), [("github-workflows", WORKFLOW), ("dependabot", ROOT / ".github" / "dependabot.yml")]
)
def test_the_files_of_github_keep_their_schema(schema, file):
    command = ["check-jsonschema", "--builtin-schema", f"vendor.{schema}", file]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
