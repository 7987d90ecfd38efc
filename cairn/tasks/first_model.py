"""Builds a task's model, and of it what a job starts from."""

import torch
from torch import nn

from cairn.model.schema import Schema
from cairn.tasks.loader import TaskFailed, task_code
from cairn.tasks.partial import StateSplit, split_of, trained_part
from cairn.tasks.state_dict import payload_of
from cairn.tasks.task import Task


def first_model(task: Task, seed: int, *, gradients: bool = False) -> tuple[Schema, bytearray]:
    """Build the model a job of weights or of gradients starts from: what the task exchanges of `first_split`.

    Raises TaskFailed where the task's code raises, UsageError for a model that cannot be averaged.
    """
    return payload_of(first_split(task, seed, gradients=gradients).shared)


def first_split(task: Task, seed: int, *, gradients: bool = False) -> StateSplit:
    """Build `task.model()` after `torch.manual_seed(seed)`: its shared, its kept and its private entries.

    In a job of gradients, buffers and frozen parameters that are not kept are private.

    Raises as `first_model` does.
    """
    torch.manual_seed(seed)
    model = built(task)
    split = split_of(task, model)
    return trained_part(split, model) if gradients else split


def built(task: Task) -> nn.Module:
    """What `task.model()` returns. Raises TaskFailed where that is no model."""
    with task_code("model"):
        model = task.model()
    if not isinstance(model, nn.Module):
        raise TaskFailed(
            f"the task's model returned {type(model).__name__}, expected a torch.nn.Module"
        )
    return model
