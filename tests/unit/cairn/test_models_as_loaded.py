"""Whatever a model is made of, a round trains what loading the base gives, and its update is the model's state."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cairn.tasks.runner import TaskRunner
from cairn.tasks.state_dict import payload_of, read_state
from cairn.tasks.task import Data, Round, Site, Task
from owner_node.training.ipc import ModelMemory

SITE = Site("bob", Path("rows"))
THIS = Round("job", 3, {})
Model = Callable[[], nn.Module]
Train = Callable[[Any], None]


class Flat(nn.Module):
    """Its parameters are views of one tensor, which is what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = torch.arange(6.0)
        self.one = nn.Parameter(self.flat[:4].view(2, 2))
        self.two = nn.Parameter(self.flat[4:])


class Whole(nn.Module):
    """Something else, of the same size, looks at its parameter."""

    def __init__(self, look: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))
        self.looks = [look(self.weight)]


class Buffered(nn.Module):
    """A buffer that is in no state_dict shares the parameter's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))
        self.register_buffer("look", self.weight.detach(), persistent=False)


class OfNumPy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.array = np.eye(2, dtype=np.float32)
        self.weight = nn.Parameter(torch.from_numpy(self.array))


class Turned(nn.Module):
    """The weight of one layer is the other's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.decoder = nn.Linear(3, 2)
        self.decoder.weight = nn.Parameter(self.encoder.weight.detach().t())


class Mixing(nn.Linear):
    """Loading takes half of what it is given, and keeps it to be compared with."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.anchor: Mapping[str, Any] = {}
        with torch.no_grad():
            self.weight.fill_(8)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002  PyTorch's own signature
        assign: bool = False,  # noqa: FBT001, FBT002  PyTorch's own signature
    ) -> Any:
        self.anchor = state_dict
        mine = self.state_dict()
        half = {name: (mine[name] + value) / 2 for name, value in state_dict.items()}
        return super().load_state_dict(half, strict, assign)


class Layered(nn.Linear):
    """A layer that loads its own way."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        mixed = {name: value + 1 for name, value in state_dict.items()}
        super()._load_from_state_dict(mixed, prefix, *others)


class Doubling(nn.Linear):
    """Its state_dict() says twice what its tensors hold, and loading halves it."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_state_dict_post_hook(self._double)  # type: ignore[no-untyped-call]  # PyTorch has not annotated it
        self.register_load_state_dict_pre_hook(self._halve)  # type: ignore[no-untyped-call]  # PyTorch has not annotated it

    @staticmethod
    def _double(_module: Any, state: dict[str, Any], _prefix: str, _metadata: Any) -> None:
        state |= {name: value * 2 for name, value in state.items()}

    @staticmethod
    def _halve(_module: Any, state: dict[str, Any], *_: Any) -> None:
        state |= {name: value / 2 for name, value in state.items()}


class Assigning(nn.Linear):
    """Loading takes over the tensors that it is given, and keeps them."""

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002  PyTorch's own signature
        assign: bool = False,  # noqa: ARG002, FBT001, FBT002  PyTorch's own signature
    ) -> Any:
        return super().load_state_dict(state_dict, strict, assign=True)


class Caching(nn.Linear):
    """It makes its state_dict() once, of the tensors that it has then."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.made = super().state_dict()

    def state_dict(self, *_arguments: Any, **_named: Any) -> Any:
        return self.made


class Crossed(nn.Module):
    """Its state_dict() has each of two tensors under the other's name; loading may change them back."""

    def __init__(self, *, back: bool) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.zeros(2))
        self.two = nn.Parameter(torch.ones(2))
        self.register_state_dict_post_hook(self._cross)  # type: ignore[no-untyped-call]  # PyTorch has not annotated it
        if back:
            self.register_load_state_dict_pre_hook(self._cross)  # type: ignore[no-untyped-call]  # PyTorch has not annotated it

    @staticmethod
    def _cross(_module: Any, state: dict[str, Any], *_: Any) -> None:
        state["one"], state["two"] = state["two"], state["one"]


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


def tied_by_memory() -> nn.Module:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = nn.Parameter(one.weight.detach())
    return nn.Sequential(one, other)


def layers() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.LSTM(2, 3),
        nn.Linear(3, 3).half(),
        nn.Linear(1, 5).to(torch.bfloat16),
    )
    model.register_buffer("mask", torch.tensor([True, False, True]))
    model.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
    model.register_buffer("nothing", torch.empty(0, 3))
    return model


def channels_last() -> nn.Module:
    model: nn.Module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
    return model


def channels_last_of_one_pixel() -> nn.Module:
    """It counts as contiguous either way, and its strides decide which way it is computed."""
    model: nn.Module = nn.Conv2d(4, 6, 1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
    return model


def normed() -> nn.Module:
    model: nn.Module = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    return model


def looked_at(look: Callable[[Tensor], Any]) -> Model:
    return lambda: Whole(look)


MODELS: dict[str, Model] = {
    "a layer": lambda: nn.Linear(3, 2),
    "layers of many types": layers,
    "tied": tied,
    "tied by memory": tied_by_memory,
    "caching": Caching,
    "flat": Flat,
    "detached": looked_at(lambda weight: weight.detach()),
    "a view": looked_at(lambda weight: weight.view(4)),
    "a numpy view": looked_at(lambda weight: weight.detach().numpy()),
    "a hidden buffer": Buffered,
    "of numpy": OfNumPy,
    "shared": lambda: nn.Linear(2, 2).share_memory(),
    "a storage": looked_at(lambda weight: weight.untyped_storage()),
    "channels last": channels_last,
    "channels last, of one pixel": channels_last_of_one_pixel,
    "assigning": lambda: Assigning(2, 2),
    "mixing": Mixing,
    "a layer of its own": lambda: Layered(2, 2),
    "doubling": Doubling,
    "crossed": lambda: Crossed(back=True),
    "crossed one way": lambda: Crossed(back=False),
    "normed": normed,
    "turned": Turned,
}


def change(model: Any) -> None:
    with torch.no_grad():
        for number, tensor in enumerate((*model.parameters(), *model.buffers())):
            if tensor.dtype == torch.bool:
                tensor.logical_not_()
            else:
                tensor.add_(number + 1)
    if isinstance(model, Flat):
        model.flat *= 3
    if isinstance(model, Mixing):
        model.weight.data += model.anchor["weight"]
    if isinstance(model, OfNumPy):
        model.array *= 3


def replace(model: Any) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 2))


def exchange_places(model: Any) -> None:
    by_kind: dict[Any, list[Tensor]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        by_kind.setdefault((tensor.dtype, tensor.shape), []).append(tensor)
    for alike in by_kind.values():
        datas = [tensor.data for tensor in alike]
        for tensor, data in zip(alike, [*datas[1:], datas[0]], strict=True):
            tensor.data = data


def turn(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 2 and len(set(parameter.shape)) == 1:
            parameter.data = parameter.data.t()


def negate(model: Any) -> None:
    """By a bit of the tensor, which leaves its memory as it is."""
    for parameter in model.parameters():
        parameter.data = torch._neg_view(parameter.data)


def share(model: Any) -> None:
    model.share_memory()
    change(model)


def nothing(_model: Any) -> None:
    return None


def base_for(model: Model) -> tuple[Any, bytearray]:
    """Other values than `model()` has, and the same under tied names."""
    torch.manual_seed(1)
    other = model()
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.dtype != torch.bool:
                tensor.add_(2)
    return payload_of(other.state_dict())


def by_copies(model: Model, base: Mapping[str, Tensor], train: Train) -> dict[str, Tensor]:
    torch.manual_seed(2)
    plain = model().train()
    plain.load_state_dict(copy.deepcopy(base), strict=False)
    train(plain)
    return {name: value.detach().clone() for name, value in plain.state_dict().items()}


@pytest.mark.parametrize("train", [change, replace, exchange_places, turn, negate, share, nothing])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_training_gives_what_loading_and_copying_gives_whether_the_update_takes_the_bases_place_or_not(
    model: Model, train: Train
) -> None:
    schema, base = base_for(model)
    expected = by_copies(model, read_state(schema, base), train)
    task = Task(
        model=model,
        data=lambda _: Data(train=None, examples=1),
        train=lambda model, _data, _round: train(model),
    )
    for in_place in (True, False):
        memory = ModelMemory.create(schema)
        memory.base[:] = base
        update = memory.base if in_place else memory.update
        torch.manual_seed(2)
        TaskRunner(task, SITE).train(THIS, schema, memory.private_base(), update)
        state = read_state(schema, update)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
        assert in_place or memory.base == base
        memory.close()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_an_evaluation_sees_the_base_as_loading_gives_it_and_does_not_change_it(
    model: Model,
) -> None:
    schema, base = base_for(model)
    expected = by_copies(model, read_state(schema, base), nothing)

    def evaluate(model: nn.Module, _data: Any, _round: Round) -> dict[str, float]:
        state = model.state_dict()
        return {"equal": all(torch.equal(state[name], value) for name, value in expected.items())}

    task = Task(
        model=model,
        data=lambda _: Data(train=None, examples=1, test_examples=1),
        train=lambda *_: None,
        evaluate=evaluate,
    )
    torch.manual_seed(2)
    memory = ModelMemory.create(schema)
    memory.base[:] = base
    runner = TaskRunner(task, SITE)
    assert runner.evaluate(THIS, schema, memory.private_base()).metrics == {"equal": 1.0}
    assert memory.base == base
    memory.close()


def test_tied_weights_stay_tied_and_travel_under_both_names() -> None:
    seen: list[bool] = []

    def train(model: Any, _data: Any, _round: Any) -> None:
        seen.append(model[0].weight is model[1].weight)
        model[0].weight.data.fill_(5)

    schema, payload = payload_of(tied().state_dict())
    task = Task(model=tied, data=lambda _: Data(train=None, examples=1), train=train)
    TaskRunner(task, SITE).train(THIS, schema, bytearray(payload), payload)
    state = read_state(schema, payload)
    assert seen == [True]
    assert state["0.weight"].tolist() == state["1.weight"].tolist() == [[5.0, 5.0], [5.0, 5.0]]
