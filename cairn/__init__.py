"""Cairn: federated averaging in which the model owner never sees one owner's update."""

import importlib
import os
from typing import TYPE_CHECKING, Any

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
    "connect",
    "control_variates",
    "private",
    "prox",
    "sandbox",
    "scaffold",
]

if TYPE_CHECKING:
    from coordinator.api.federation import connect
    from coordinator.api.local_federation import sandbox

# What a model owner uses. Of the roles' code, an owner's or an aggregator's process imports none but its own.
_FOUND_IN = {"connect": "coordinator.api.federation", "sandbox": "coordinator.api.local_federation"}

__version__ = "0.2.0"

# gRPC reads these once, when it is imported, which is after this.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters of it arrives as a status
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # our processes spawn and never fork

if not TYPE_CHECKING:  # so that a misspelt name is an error before it runs

    def __getattr__(name: str) -> Any:
        if name not in _FOUND_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_FOUND_IN[name]), name)
