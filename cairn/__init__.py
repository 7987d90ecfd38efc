"""Cairn: federated averaging in which the model owner never sees one owner's update."""

from cairn.task import Data, Round, Site, Task

__all__ = ["Data", "Round", "Site", "Task", "__version__"]

__version__ = "0.1.0"
