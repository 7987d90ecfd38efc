"""Lays a model's tensors into memory that is given, so that what trains them writes the update.

A tensor is laid into its slot by setting its `.data`: the Parameter stays the object that it is, and so do
its ties and whatever holds it. That is done only where nobody can tell it from loading:

- the model loads as nn.Module does, without a `load_state_dict` or a hook of its own, which could keep
  the values, change them or mix them with those that the model has;
- the entry of `state_dict()` is the live tensor, dense, on the CPU, row-major and of the slot's type;
- its memory is PyTorch's own, and only parameters and buffers look at it. Where anything else does (a flat
  tensor of which parameters are views, a NumPy array, another process), setting `.data` would part the two.

Everything else is loaded and written back by a copy. So is what training has put in a tensor's place.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cairn.exchanging import is_plain

# Layers of a kind may look at the names; these change no value.
_PLAIN: dict[str, set[Any]] = {
    "load_state_dict": {nn.Module.load_state_dict},
    "named_modules": {nn.Module.named_modules},
    "named_parameters": {nn.Module.named_parameters},
    "named_buffers": {nn.Module.named_buffers},
    "_load_from_state_dict": {
        kind._load_from_state_dict  # noqa: SLF001 - PyTorch has layers override it, under this name
        for kind in (nn.Module, nn.BatchNorm1d, nn.InstanceNorm1d)
    },
}


def lay(model: nn.Module, state: Mapping[str, Any], slots: Mapping[str, Tensor]) -> set[str]:
    """Lay what can be into its slot, which then has the values, and say which names need no loading.

    `state` is the model's whole state_dict(). Its entries are laid too, since a model may keep them. Tied
    names are laid into the slot of the last, since that is the one whose values loading would leave.
    """
    if not loads_plainly(model):
        return set()
    laid, order = set[str](), {name: place for place, name in enumerate(state)}
    for storage in _storages(model, state):
        if storage.is_only_its_members() and all(
            _fits(tensor, state.get(name), slots.get(name))
            for name, tensor in storage.members.items()
        ):
            home = slots[max(storage.members, key=order.__getitem__)]
            for tensor in storage.known.values():
                tensor.data = home
            laid |= storage.members.keys()
    return laid


def write_back(state: Mapping[str, Tensor], slots: Mapping[str, Tensor]) -> None:
    """Copy into its slot each tensor that does not live there."""
    moved = {
        name: state[name].detach()
        for name, slot in slots.items()
        if slot.numel() and not (is_plain(state[name]) and _is_same_place(state[name], slot))
    }
    names = {slot.data_ptr(): name for name, slot in slots.items() if slot.numel()}
    for name, tensor in moved.items():
        # One that lives in another's slot is read before that is written: two may have changed places.
        if not is_plain(tensor) or names.get(_storage_address(tensor)) in moved:
            moved[name] = tensor.clone()
    for name, tensor in moved.items():
        slots[name].copy_(tensor)


@dataclass
class _Storage:
    """Memory of a model: its parameters and buffers by name, and these and the entries by their id."""

    members: dict[str, Tensor] = field(default_factory=dict)
    known: dict[int, Tensor] = field(default_factory=dict)

    def is_only_its_members(self) -> bool:
        """Whether the members are one tensor under one name or several, and nobody else's."""
        first, *others = self.members.values()
        return all(_is_same_place(first, other) for other in others) and (
            _holders(first) == len(self.known)
        )


def _storages(model: nn.Module, state: Mapping[str, Any]) -> list[_Storage]:
    members = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    storages = defaultdict[int, _Storage](_Storage)
    for tensor in (*members.values(), *state.values()):
        if is_plain(tensor):
            storages[_storage_address(tensor)].known[id(tensor)] = tensor
    for name, tensor in members.items():
        if is_plain(tensor):
            storages[_storage_address(tensor)].members[name] = tensor
    return [storage for storage in storages.values() if storage.members]


def loads_plainly(model: nn.Module) -> bool:
    """Whether loading copies values into the model's tensors, in all its modules, and does nothing else."""
    return all(map(_is_plain_loader, model.modules()))


def _is_plain_loader(module: nn.Module) -> bool:
    return (
        all(
            getattr(getattr(module, name), "__func__", None) in functions
            for name, functions in _PLAIN.items()
        )
        and not module._load_state_dict_pre_hooks  # noqa: SLF001 - PyTorch has no other way to ask
        and not module._load_state_dict_post_hooks  # noqa: SLF001 - PyTorch has no other way to ask
    )


def _fits(tensor: Tensor, entry: Any, slot: Tensor | None) -> bool:
    return (
        slot is not None
        and tensor.numel() > 0
        and is_plain(entry)
        and _is_same_place(entry, tensor)
        and _kind(tensor) == _kind(slot)
    )


def _is_same_place(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and _kind(one) == _kind(other)


def _kind(tensor: Tensor) -> tuple[object, ...]:
    """All that says how a tensor's memory is read: strides too, of which some shapes have several."""
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg()


def _storage_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _holders(tensor: Tensor) -> float:
    """How many tensors have their values in this one's storage, known to Python or not."""
    if _references(tensor) > _UNHELD:  # by Python, without a tensor
        return math.inf
    storage = tensor.untyped_storage()
    if storage.is_shared() or not storage.resizable():  # another process's, NumPy's or a file's
        return math.inf
    count = torch._C._storage_Use_Count(storage._cdata)  # noqa: SLF001 - PyTorch has no other way to ask
    return count - 1  # `storage` itself


def _references(tensor: Tensor) -> int:
    """How many hold the Python object of the storage, of which there is one."""
    return sys.getrefcount(tensor.untyped_storage())


_UNHELD = _references(torch.empty(1))
