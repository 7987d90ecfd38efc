"""Which entries travel: exactly those that the task names, and no value under another name."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from cairn.errors import UsageError
from cairn.tasks.partial import differing, split_state


def a_state() -> dict[str, Any]:
    """A layer with an adapter, a BatchNorm layer and a head, as their state_dict."""
    model = nn.ModuleDict(
        {"layer": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "head": nn.Linear(2, 1)}
    )
    model["layer"].register_parameter("lora_a", nn.Parameter(torch.zeros(1, 2)))
    model["layer"].register_parameter("lora_b", nn.Parameter(torch.zeros(2, 1)))
    return model.state_dict()


NORM = {
    "norm.weight",
    "norm.bias",
    "norm.running_mean",
    "norm.running_var",
    "norm.num_batches_tracked",
}
LORA = {"layer.lora_a", "layer.lora_b"}
HEAD = {"head.weight", "head.bias"}
LAYER = {"layer.weight", "layer.bias"}


@pytest.mark.parametrize(
    ("exchanges", "travels"),
    [
        (None, NORM | LORA | HEAD | LAYER),
        (("*",), NORM | LORA | HEAD | LAYER),
        (("head.*",), HEAD),
        (["head.weight"], {"head.weight"}),
        (("*.lora_*", "head.*"), LORA | HEAD),
        (("*", "!norm.*"), LORA | HEAD | LAYER),
        (("!norm.*", "*"), LORA | HEAD | LAYER),
        (("norm.*", "!*.num_batches_tracked"), NORM - {"norm.num_batches_tracked"}),
        (("*.weigh[st]",), {"layer.weight", "norm.weight", "head.weight"}),
    ],
)
def test_the_entries_that_the_patterns_name_travel_and_all_others_stay(
    exchanges: Any, travels: set[str]
) -> None:
    state = a_state()
    parts = split_state(state, exchanges)
    assert parts.shared.keys() == travels
    assert parts.private.keys() == state.keys() - travels
    assert all(value is state[name] for name, value in (parts.shared | parts.private).items())


@pytest.mark.parametrize(
    ("exchanges", "keeps", "travels", "is_kept"),
    [
        (None, ("norm.*",), LORA | HEAD | LAYER, NORM),
        (None, ("norm.*", "!*.num_batches_tracked"), None, NORM - {"norm.num_batches_tracked"}),
        (("head.*", "layer.*"), ["head.bias"], LORA | LAYER | {"head.weight"}, {"head.bias"}),
        (("head.*",), ("*.lora_?",), HEAD, LORA),
        (("*", "!norm.*"), ("norm.*",), LORA | HEAD | LAYER, NORM),
    ],
)
def test_what_is_kept_stays_also_where_it_is_named_among_what_travels(
    exchanges: Any, keeps: Any, travels: set[str] | None, is_kept: set[str]
) -> None:
    state = a_state()
    parts = split_state(state, exchanges, keeps)
    assert parts.kept.keys() == is_kept
    assert parts.shared.keys() == (state.keys() - is_kept if travels is None else travels)
    assert parts.private.keys() == state.keys() - parts.shared.keys() - is_kept
    assert all(value is state[name] for name, value in parts.kept.items())


@pytest.mark.parametrize(
    ("keeps", "words"),
    [
        ("norm.*", "keeps is 'norm.*', expected a tuple of names or patterns"),
        (("nrom.*",), "the task's keeps has 'nrom.*', which matches no entry"),
        ((), "the task's keeps is (), by which no tensor is kept"),
        (("*",), "the task's keeps names every tensor that the task exchanges"),
    ],
)
def test_a_mistake_in_what_is_kept_is_named_as_one(keeps: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        split_state(a_state(), None, keeps)


@pytest.mark.parametrize(
    ("exchanges", "words"),
    [
        ("head.*", ["exchanges is 'head.*', expected a tuple of names", 'exchanges=("head.*",)']),
        (str.islower, ["expected a tuple of names or patterns"]),
        (("head.*", 3), ["expected a tuple of names or patterns"]),
        (("head.wieght",), ["'head.wieght', which matches no entry", "closest are head.weight"]),
        (("HEAD.*",), ["'HEAD.*', which matches no entry"]),
        (("*", "!nrom.*"), ["'nrom.*', which matches no entry", "norm."]),
        ((), ["by which no tensor travels"]),
        (("!norm.*",), ["by which no tensor travels"]),
        (("head.*", "!head.*"), ["by which no tensor travels"]),
    ],
)
def test_what_names_nothing_is_a_mistake_with_its_cure(exchanges: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        split_state(a_state(), exchanges)
    assert all(word in str(caught.value) for word in words)


def tied() -> dict[str, Any]:
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "head": nn.Linear(2, 3)})
    model["head"].weight = model["embedding"].weight
    return model.state_dict()


def viewed() -> dict[str, Any]:
    whole = torch.arange(6.0)
    return {"apart": torch.zeros(1), "whole": whole, "end": whole[4:]}


@pytest.mark.parametrize(
    ("state", "exchanges", "words"),
    [
        (tied(), ("head.*",), "embedding.weight stays .* with head.weight, which travels"),
        (
            tied(),
            ("embedding.weight",),
            "head.weight stays .* with embedding.weight, which travels",
        ),
        (viewed(), ("end",), "whole stays .* with end, which travels"),
        (viewed(), ("whole",), "end stays .* with whole, which travels"),
    ],
)
def test_no_value_of_a_tensor_that_stays_travels_under_another_name(
    state: dict[str, Any], exchanges: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=f"{words}; exchange both or neither"):
        split_state(state, exchanges)


def test_a_tied_weight_that_is_kept_does_not_travel_under_its_other_name() -> None:
    words = "head.weight stays by the task's keeps, but it shares its memory with embedding.weight"
    with pytest.raises(UsageError, match=words):
        split_state(tied(), None, ("head.weight",))
    split_state(tied(), None, ("*.weight",))


def test_tied_weights_that_travel_or_stay_together_and_neighbours_in_memory_are_fine() -> None:
    split_state(tied(), ("*.weight",))
    split_state(tied(), ("head.bias",))
    split_state(viewed(), ("apart",))
    whole = torch.arange(6.0)
    assert split_state({"one": whole[:3], "two": whole[3:]}, ("two",)).private.keys() == {"one"}


def test_what_stays_may_be_anything() -> None:
    stays = {
        "lazy": nn.LazyLinear(2).weight,
        "meta": torch.zeros(2, device="meta"),
        "sparse": torch.eye(2).to_sparse(),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "empty": torch.empty(0, 2),
        "extra": {"version": 3},
    }
    parts = split_state(stays | {"head": torch.zeros(1)}, ("head",))
    assert parts.shared.keys() == {"head"}
    assert parts.private.keys() == stays.keys()


def test_what_differs_between_two_models_is_named() -> None:
    one = {"same": torch.ones(2), "other": torch.ones(2), "gone": torch.ones(1), "extra": object()}
    two = {"same": torch.ones(2), "other": torch.tensor([1.0, 2.0]), "extra": object()}
    assert differing(one, two) == ["other"]
    assert differing(one, one) == []
