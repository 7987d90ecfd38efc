"""The model a job starts from, as the owners' task exchanges it."""

from pathlib import Path

import pytest

from coordinator.initial_model import first_model

TASK = """
import cairn
from torch import nn

def model():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    return net

task = cairn.Task(model=model, data=print, gradients=print)
"""
TRAINED = {"1.weight", "1.bias", "2.weight", "2.bias"}
OTHERS = {"0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize(("gradients", "names"), [(True, TRAINED), (False, TRAINED | OTHERS)])
def test_that_of_a_job_of_gradients_has_trained_parameters_alone(
    tmp_path: Path,
    gradients: bool,  # noqa: FBT001 - a parameter of the test
    names: set[str],
) -> None:
    (tmp_path / "task.py").write_text(TASK)
    schema, payload = first_model(tmp_path / "task.py", 1, tmp_path, gradients=gradients)
    assert {spec.name for spec in schema.tensors} == names
    assert len(payload) == schema.total_bytes
