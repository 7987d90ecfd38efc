"""Takes the gradients out of a model after the task's `gradients` function.

What leaves of a parameter is its `grad`, in its own type:

- zeros where it has none, because the loss does not depend on it;
- a sparse gradient (`nn.Embedding(sparse=True)`) as a dense one;
- of a tied parameter its one gradient, the sum over all its uses, under each of its names. From the same base an
  optimizer then steps to the same values under each; a bound on the norm counts it once for each name.

The values are not looked at: the node refuses what is not finite.
"""

import torch
from torch import Tensor, nn

from cairn.errors import UsageError
from cairn.model.schema import Schema
from cairn.tasks.loader import TaskFailed
from cairn.tasks.state_dict import WritableBuffer, schema_of, write_state
from cairn.v1 import round_pb2 as pb


def forget_gradients(model: nn.Module) -> None:
    """Leave no gradient of an earlier round, to which `backward` would add: `model()` may return the same model again."""
    for parameter in model.parameters():
        parameter.grad = None


def write_gradients(model: nn.Module, schema: Schema, update: WritableBuffer) -> None:
    """Write the gradient of each parameter that this schema names, in canonical order. Raises TaskFailed."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named = {spec.name: parameters[spec.name] for spec in schema.tensors if spec.name in parameters}
    if named and all(parameter.grad is None for parameter in named.values()):
        raise TaskFailed(
            "the task's gradients left no gradient in any parameter of the model; call loss.backward()"
        )
    found = {name: _gradient(parameter) for name, parameter in named.items()}
    try:
        difference = schema.difference(schema_of(found))
    except UsageError as error:
        raise TaskFailed(str(error), pb.REASON_WRONG_TENSORS) from None
    if difference:
        raise TaskFailed(
            f"the gradients are not those of the model's parameters: {difference}",
            pb.REASON_WRONG_TENSORS,
        )
    write_state(found, schema, update)


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        return zero.expand(parameter.shape)
    return gradient if gradient.layout is torch.strided else gradient.to_dense()
