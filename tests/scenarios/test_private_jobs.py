"""Jobs with noise in federations of real processes: they end with their budget, and an owner keeps its own over all jobs."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from cairn.cli.verify import verify
from cairn.ledger.files import read_ledger
from tests.scenarios.federation import Federation

THREE = {"alice": 1.0, "bob": -0.3, "carol": 0.7}
# Of noise 2, at delta 1e-5, two releases tell epsilon 3.189 of an owner and three 4.011 (Proposition 12 of Canonne, Kamath,
# Steinke 2020, by SciPy's search): the budget allows two of the five rounds.
PRIVATE = {
    "rounds": 5,
    "rule.name": "private_mean",
    "rule.norm": 1.0,
    "rule.noise": 2.0,
    "rule.epsilon": 3.5,
    "rule.delta": 1e-5,
}


def entries(federation: Federation, owner: str, kind: str) -> list[dict[str, Any]]:
    path = federation.files / owner / "state/owner.sqlite"
    return [entry.facts for entry in read_ledger(path) if entry.kind == kind]


def verified(federation: Federation, *arguments: str) -> str:
    config = str(federation.files / "coordinator.toml")
    result = CliRunner().invoke(verify, [*arguments, "--config", config])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_job_ends_with_its_budget_and_no_new_name_gets_around_an_owners_own(
    federate: Callable[..., Federation],
) -> None:
    federation = federate(THREE)
    federation.edit("carol", "\nmin_examples", "\nmax_epsilon = 3.5\nmin_examples")
    federation.aggregator()
    federation.owners()
    first = federation.coordinator(**PRIVATE)
    assert first.ends() == 0, first.output()
    said = first.output()
    assert "The budget, epsilon 3.5 of one owner (delta 1e-05), allows 2 of the 5 rounds" in said
    assert "Round 2/5   3 owners   epsilon 3.19 of 3.5 (delta 1e-05), unit: one owner" in said
    assert "The budget is spent after 2 of 5 rounds" in said
    assert "no release" not in said
    told = [line["epsilon"] for line in federation.history()]
    assert told == [pytest.approx(2.1657, abs=1e-4), pytest.approx(3.1890, abs=1e-4)]
    output = verified(federation, str(federation.out))
    assert "epsilon 3.189 of 3.5 (delta 1e-05) after 2 releases" in output

    released = str(federation.out / "model.safetensors")
    federation.out = federation.home / "again"
    second = federation.coordinator(**PRIVATE, name="again", model=released)
    assert second.ends() == 0, second.output()
    assert "carol was not counted (BUDGET_SPENT): with this round, all jobs" in second.output()
    assert [line["contributors"] for line in federation.history()] == [2, 2]
    declined = entries(federation, "carol", "declined")
    assert {facts["reason"] for facts in declined} == {"BUDGET_SPENT"}
    assert "epsilon 4.011 of this owner; its file allows 3.5 (max_epsilon)" in declined[0]["why"]
    assert len(entries(federation, "carol", "sent")) == 2
    assert len(entries(federation, "alice", "sent")) == 4
    verified(federation, str(federation.files / "alice/state"))
