"""A job from Python, in a script and in a notebook, against real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import nbclient
import nbformat
import pytest
import structlog
import torch
from torch import nn

import cairn
from cairn.diagnostics.findings import Grade
from cairn.errors import CairnError, UsageError
from coordinator.api.local_federation import LocalFederation
from tests.scenarios.tutorial import TUTORIAL, plain_loop

SETTINGS = {"lr": 0.1, "steps": 5}
NOTEBOOK = TUTORIAL / "tutorial.ipynb"
TOLD = "import json\nprint(json.dumps({name: t.tolist() for name, t in averaged.state_dict().items()}))"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    data = {owner: TUTORIAL / f"data/{owner}.csv" for owner in ("alice", "bob")}
    ranges = {"lr": [0, 1], "steps": [1, 1000]}
    folder = tmp_path_factory.mktemp("federation")
    with cairn.sandbox(
        TUTORIAL / "task.py", data, settings=ranges, metrics=["loss"], folder=folder
    ) as running:
        yield running
    structlog.reset_defaults()


def a_model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(2, 1)


def test_a_loop_that_was_left_goes_on_and_ends_with_the_weights_of_a_plain_loop(
    federation: LocalFederation,
) -> None:
    model = a_model()
    job = federation.job("task", model=model, rounds=4, settings=SETTINGS)
    with pytest.raises(UsageError, match="has not begun"):
        _ = job.model
    with closing(iter(job)) as releases:
        first = next(releases)
    assert (first.release, first.releases, first.contributors) == (1, 4, 2)
    assert [release.release for release in job] == [2, 3, 4]
    assert list(job) == []  # it has ended
    expected = plain_loop(a_model().state_dict(), 4)
    assert all(torch.equal(job.state[name], expected[name]) for name in expected)
    assert all(torch.equal(job.model.state_dict()[name], expected[name]) for name in expected)
    assert torch.equal(model.weight, a_model().weight)
    assert [line["metrics"].keys() for line in job.history] == [{"loss"}] * 4
    assert {finding.grade for finding in job.verify()} == {Grade.OK}


def test_another_job_under_the_same_name_is_refused_by_the_sentence_of_the_command(
    federation: LocalFederation,
) -> None:
    changed = federation.job("task", model=a_model(), rounds=5, settings=SETTINGS)
    federation.job("task", model=a_model(), rounds=4, settings=SETTINGS).run()
    with pytest.raises(UsageError, match="with other settings: choose another --out"):
        changed.run()


def test_a_job_says_which_node_has_ended_and_what_it_printed_last(
    federation: LocalFederation,
) -> None:
    job = federation.job("second", task="task", model=a_model(), rounds=3, settings=SETTINGS)
    os.kill(federation.processes["bob"].pid, signal.SIGKILL)
    federation.processes["bob"].wait()
    with pytest.raises(CairnError, match=r"bob has ended \(exit code -9\)"):
        job.run()


KILLED = """
import os, sys, cairn
data = {name: f"{sys.argv[1]}/data/{name}.csv" for name in ("alice", "bob")}
federation = cairn.sandbox(sys.argv[1] + "/task.py", data, folder=sys.argv[2])
print(*(process.pid for process in federation.processes.values()), flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_nodes_of_a_process_that_was_killed_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(TUTORIAL), str(tmp_path / "sandbox")]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True).stdout
    nodes = [int(pid) for pid in printed.split()]
    assert len(nodes) == 3
    deadline = time.monotonic() + 60
    while left := [pid for pid in nodes if _is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    """A zombie is not: whose child it has become is not ours to say."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of the kernel's own packages
def test_the_notebook_runs_as_it_stands_to_the_weights_of_a_plain_loop() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]  # it has no types
    stop = notebook.cells.pop()
    notebook.cells += [nbformat.v4.new_code_cell(TOLD), stop]  # type: ignore[no-untyped-call]  # nor this
    where = {"metadata": {"path": str(TUTORIAL)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    printed = {
        number: "".join(output.get("text", "") for output in cell.outputs)
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
    }
    text = "".join(printed.values())
    assert "loss:        0.0168" in text
    assert "loss: 7.61e-06" in text
    told = next(line for line in text.splitlines() if line.startswith("{"))
    expected = plain_loop(a_model().state_dict(), 10)
    assert json.loads(told) == {name: tensor.tolist() for name, tensor in expected.items()}
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    views = [
        output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})
    ]
    assert "round 10 of 10" in views[0]
