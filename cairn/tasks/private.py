"""`cairn.private`: differential privacy for each record of an owner, in one line of its loop. Imports no torch.

What the line asks for is decided elsewhere: the noise, the clipping norm and the budget are those of the owner's own
file, whatever the job says, and the owner's node keeps the account (owner_node/record_privacy.py).
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cairn.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    from cairn.tasks.private_training import PrivateTraining

# The private training of the round under way; None where the owner's file asks for none.
UNDER_WAY: ContextVar["PrivateTraining | None"] = ContextVar("private_training", default=None)


@dataclass(frozen=True)
class Privacy:
    """How an owner has a task train privately.

    `noise` is the standard deviation of the noise in multiples of `clip`, and `clip` the largest L2 norm of one
    record's gradient. `spend` is told the sample rate and the number of steps before the first of them; it raises
    TaskFailed where the owner's budget does not allow them.
    """

    noise: float
    clip: float
    spend: Callable[[float, int], None]


def private(
    model: "nn.Module", optimizer: "Optimizer", loader: "DataLoader[Any]", *, epochs: int
) -> "tuple[nn.Module, Optimizer, DataLoader[Any]]":
    """Train with differential privacy for each item of the loader's dataset (DP-SGD: Abadi et al. 2016, arXiv 1607.00133).

        optimizer = optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
        model, optimizer, loader = cairn.private(model, optimizer, loader, epochs=5)
        for _ in range(5):
            for inputs, labels in loader:  # as ever, with a loss that is a mean over the batch

    Returns the three that the loop goes on with. The loader draws each item independently, with the probability
    1 / len(loader), so that batches differ in size and may be empty. The optimizer clips the gradient of each item and
    adds noise to their sum, both as the owner's file says. The model is a wrapper of the round's, which it trains.

    Before anything is drawn, the owner's node is asked for the budget of all `epochs`; where the task has not as much left,
    this raises and the round is declined (BUDGET_SPENT). A step after the last of them raises.

    Raises UsageError where the owner's file has no `private` table for the task; for a model that has no gradient of a
    single record, such as one with BatchNorm; where something of the model was changed before; for a loader
    without a length, with a sampler of its own, or whose items are no tuples of tensors; and without the extra `cairn[dp]`.
    """
    training = UNDER_WAY.get()
    if training is None:
        raise UsageError(
            "cairn.private: this owner's file says nothing of it; add a table [tasks.NAME.private] with epsilon, delta,"
            " noise and clip, or try the task with `cairn try --private`"
        )
    return training.begin(model, optimizer, loader, epochs)
