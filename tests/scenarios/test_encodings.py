"""Jobs whose updates travel as deltas: what leaves, what becomes of it, and who may say no."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file

from cairn.ledger.files import read_ledger
from tests.scenarios.conftest import MakeFederation
from tests.scenarios.federation import Federation
from tests.scenarios.processes import until

VALUES = {"alice": 1.0, "bob": -0.3, "carol": 0.07}
ROUNDS = 4
Vector = NDArray[np.float64]


def sent(federation: Federation, owner: str) -> list[tuple[int, str, int]]:
    """Of each update that left: the round, how it travelled, and how many bytes it had."""
    path = federation.files / owner / "state/owner.sqlite"
    facts = [entry.facts for entry in read_ledger(path) if entry.kind == "sent"]
    return [(each["round"], each["encoding"], each["bytes"]) for each in facts]


def in_bfloat16(delta: Vector, _kept: Vector) -> tuple[Vector, Vector]:
    return delta.astype(ml_dtypes.bfloat16).astype(np.float64), np.zeros(3)


def in_int8(delta: Vector, kept: Vector) -> tuple[Vector, Vector]:
    """What is said of it, and what is kept for the next time: the bias plainly, and the weights share a scale."""
    wanted = delta + kept
    scale = 2.0 ** np.ceil(np.log2(np.abs(wanted[1:]).max() / 127))
    said = np.round(wanted / scale) * scale
    said[0] = np.float32(wanted[0])
    return said, (wanted - said).astype(np.float32).astype(np.float64)


ENCODINGS = {"bf16_deltas": (in_bfloat16, 6), "int8_deltas": (in_int8, 4 + 4 + 3)}


def vector(state: Any) -> Vector:
    """The three numbers of the model, in the order in which they travel."""
    return np.concatenate([state["bias"].numpy(), state["weight"].numpy().ravel()]).astype(float)


def expected(federation: Federation, encoding: str, cohorts: Sequence[Sequence[str]]) -> Vector:
    """The model after rounds of these cohorts, the first of them whole, by plain NumPy."""
    say, _ = ENCODINGS[encoding]
    model, kept = vector(federation.initial), dict.fromkeys(VALUES, np.zeros(3))
    for number, cohort in enumerate(cohorts):
        deltas = []
        for owner in cohort:
            update = (model * 0.5 + VALUES[owner]).astype(np.float32)
            delta = update - model
            if number:
                delta, kept[owner] = say(delta, kept[owner])
            deltas.append(delta)
        mean = np.mean(deltas, axis=0)
        if number:
            mean = mean.astype(ml_dtypes.bfloat16).astype(np.float64)
        model = (model + mean).astype(np.float32).astype(float)
    return model


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_updates_travel_in_few_bytes_once_there_is_a_release(
    federate: MakeFederation, encoding: str
) -> None:
    federation = federate(VALUES)
    federation.aggregator()
    federation.owners()
    coordinator = federation.coordinator(updates=encoding, rounds=ROUNDS)
    assert coordinator.ends() == 0, coordinator.output()
    nbytes = ENCODINGS[encoding][1]
    for owner in VALUES:
        later = [(number, encoding, nbytes) for number in range(2, ROUNDS + 1)]
        assert sent(federation, owner) == [(1, "whole", 12), *later]
    found = vector(load_file(federation.out / "model.safetensors"))
    cohorts = [sorted(VALUES)] * ROUNDS
    np.testing.assert_allclose(found, expected(federation, encoding, cohorts), rtol=1e-6)
    assert [line["contributors"] for line in federation.history()] == [3] * ROUNDS


def test_an_owner_whose_file_does_not_allow_deltas_declines_the_rounds_that_ask_for_them(
    federate: MakeFederation,
) -> None:
    federation = federate(VALUES)
    federation.edit("alice", "\nmetrics = ", '\nencodings = ["whole"]\nmetrics = ')
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(updates="int8_deltas", rounds=3)
    assert coordinator.ends() == 0, coordinator.output()
    for number in (2, 3):
        words = f"Round {number}: alice was not counted (ENCODING_REFUSED)"
        assert words in coordinator.output()
    assert sent(federation, "alice") == [(1, "whole", 12)]
    until(lambda: len(owners["alice"].events("declined")) == 2, "alice declines")
    found = vector(load_file(federation.out / "model.safetensors"))
    cohorts = [sorted(VALUES), ["bob", "carol"], ["bob", "carol"]]
    np.testing.assert_allclose(found, expected(federation, "int8_deltas", cohorts), rtol=1e-6)
