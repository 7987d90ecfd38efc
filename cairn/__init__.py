"""Cairn: federated averaging in which the model owner never sees one owner's update."""

import os

from cairn.tasks.fedprox import prox
from cairn.tasks.private import private
from cairn.tasks.scaffold import control_variates, scaffold
from cairn.tasks.task import Data, Round, Site, Task

__all__ = [
    "Data",
    "Round",
    "Site",
    "Task",
    "__version__",
    "control_variates",
    "private",
    "prox",
    "scaffold",
]

__version__ = "0.2.0"

# gRPC reads these once, when it is imported, which is after this.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters of it arrives as a status
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # our processes spawn and never fork
