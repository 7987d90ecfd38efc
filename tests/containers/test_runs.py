"""The tutorial from nothing to its model, with the documented lines."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.containers.compose import (
    DOCUMENTED_RUN,
    LONG_STEPS,
    MODEL,
    NODES,
    TUTORIAL,
    Project,
    longer_job,
    plain_model,
    with_job,
)

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

# Ends the node in the same container, as the kernel does where memory is short.
KILL = """
import os, signal
(node,) = open("/proc/1/task/1/children").read().split()[:1]
os.kill(int(node), signal.SIGKILL)
"""


def assert_same_bits(content: bytes, rounds: int, steps: int) -> None:
    model, expected = load(content), plain_model(rounds, steps)
    assert sorted(model) == sorted(expected)
    for name, values in expected.items():
        assert torch.equal(model[name], values), name


def test_the_documented_line_ends_with_exit_code_0_and_the_model_of_the_plain_loop() -> None:
    with Project("run").taken_down() as project:
        ended = project(*DOCUMENTED_RUN)
        assert ended.code == 0, ended.stderr
        assert f"Finished. Model: {MODEL}" in ended.text
        assert_same_bits(project.file(MODEL), rounds=10, steps=5)
        assert [line["contributors"] for line in project.history()] == [2] * 10
        project.must("down")


def test_the_documented_line_ends_with_the_coordinators_exit_code_where_it_fails(
    tmp_path: Path,
) -> None:
    job = (TUTORIAL / "job.toml").read_text().replace("rounds = 10", "rounds = -1")
    with Project("mistake", with_job(tmp_path, job)).taken_down() as project:
        ended = project(*DOCUMENTED_RUN)
        assert ended.code == 2
        assert "job.toml: rounds = -1" in ended.text + ended.stderr


def test_up_ends_by_itself_and_a_second_up_leaves_the_model_as_it_is() -> None:
    with Project("up").taken_down() as project:
        project.must("up", "--no-build", "--no-color")
        assert project.exit_codes() == dict.fromkeys((*NODES, "certificates"), 0)
        model = project.file(MODEL)
        assert_same_bits(model, rounds=10, steps=5)

        again = project.must("up", "--no-build", "--no-color")
        assert "Every node has its keys already." in again
        assert "Finished. Model:" in again
        assert project.exit_codes() == dict.fromkeys((*NODES, "certificates"), 0)
        assert project.file(MODEL) == model


def test_a_job_keeps_all_its_rounds_when_the_process_of_each_node_dies_and_nobody_helps(
    tmp_path: Path,
) -> None:
    rounds = 20
    with Project("killed", longer_job(tmp_path, rounds)).taken_down() as project:
        project.must("up", "--detach", "--no-build")
        for number, node in enumerate(("bob", "aggregator", "coordinator")):
            project.wait_for_round(5 * number + 3, rounds)
            project("exec", "-T", node, "python", "-c", KILL)  # and it ends with the container
        project.wait_for_round(rounds, rounds)
        assert project.wait_until_ended("coordinator") == 0
        killed = {node: project.container(node)["RestartCount"] for node in NODES}
        assert killed == {"alice": 0, "bob": 1, "aggregator": 1, "coordinator": 1}
        history = project.history()
        assert [line["contributors"] for line in history] == [2] * rounds
        assert_same_bits(project.file(MODEL), rounds, LONG_STEPS)


def test_keys_whose_making_was_cut_short_are_made_again() -> None:
    with Project("short").taken_down() as project:
        cut_short = "mkdir -m 700 /nodes/bob/bob; echo half > /nodes/bob/bob.toml"
        project.must("run", "--rm", "certificates", "sh", "-c", cut_short)
        project.must("run", "--rm", "certificates")
        check = "cd /nodes; cat bob/bob.toml; ls -l */*/node.key"
        made = project.must("run", "--rm", "certificates", "sh", "-c", check)
        assert 'name = "bob"' in made
        assert "half" not in made
        assert made.count("-rw------- 1 cairn cairn") == len(NODES)
