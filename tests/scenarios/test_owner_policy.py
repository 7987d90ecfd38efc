"""What an owner refuses and what it lets go, in federations of real processes, as its own ledger tells it."""

import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save

from cairn.ledger.files import read_ledger
from tests.scenarios.federation import Federation
from tests.scenarios.processes import Node, until

MakeFederation = Callable[..., Federation]
Entries = list[tuple[str, dict[str, Any]]]

TWO = {"alice": 1.0, "bob": -0.3}
THREE = {**TWO, "carol": 0.7}


def ledger(federation: Federation, owner: str) -> Entries:
    path = federation.files / owner / "state/owner.sqlite"
    return [(entry.kind, entry.facts) for entry in read_ledger(path)]


def of_kind(federation: Federation, owner: str, kind: str) -> list[dict[str, Any]]:
    return [facts for found, facts in ledger(federation, owner) if found == kind]


def kinds(federation: Federation, owner: str) -> list[str]:
    return [kind for kind, _ in ledger(federation, owner)]


def mark_opened_data(federation: Federation) -> None:
    """Have the task leave a file beside the data it opens."""
    path = federation.home / "task.py"
    text = path.read_text()
    marking = '    (site.data / "opened").touch()\n    return cairn.Data('
    assert "    return cairn.Data(" in text
    path.write_text(text.replace("    return cairn.Data(", marking))


def run(federation: Federation, **job: Any) -> dict[str, Node]:
    """A whole job; returns the owners, which run on."""
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(**job)
    assert coordinator.ends() == 0, coordinator.output()
    return owners


def recorded(federation: Federation, owner: str, kind: str, count: int) -> list[dict[str, Any]]:
    """Wait for so many entries of a kind."""
    until(lambda: len(of_kind(federation, owner, kind)) >= count, f"{owner} records {kind}")
    return of_kind(federation, owner, kind)


def test_what_an_owner_refuses_it_refuses_before_its_data_is_opened(
    federate: MakeFederation,
) -> None:
    reasons = {
        "wary": "UNTRUSTED_COHORT",
        "brief": "TOO_MANY_ROUNDS",
        "floors": "FLOOR_TOO_LOW",
        "shares": "SETTING_REFUSED",
    }
    federation = federate(THREE | dict.fromkeys(reasons, 9.0))
    mark_opened_data(federation)
    federation.edit("wary", "\nfloor = 2", '\nfloor = 2\ntrusted = ["alice"]')
    federation.edit("brief", "min_examples = 1", "min_examples = 1\nmax_rounds = 1")
    federation.edit("floors", "\nfloor = 2", "\nfloor = 5")
    federation.edit("shares", "\nfloor = 2", "\nfloor = 2\nlargest_share = 0.3")
    run(federation, rounds=2)
    for owner, reason in reasons.items():
        assert set(kinds(federation, owner)) <= {"declined", "released"}
        declined = of_kind(federation, owner, "declined")
        assert {facts["reason"] for facts in declined} == {reason}
        assert (declined[0]["job"], declined[0]["round"], declined[0]["phase"]) == (
            "halving",
            1,
            "train",
        )
        assert not (federation.home / "data" / owner / "opened").exists()
    for owner in THREE:
        assert (federation.home / "data" / owner / "opened").exists()
    federation.check_model(*[sorted(THREE)] * 2)


def test_with_too_few_examples_nothing_leaves(federate: MakeFederation) -> None:
    federation = federate(THREE)
    federation.edit("carol", "min_examples = 1", "min_examples = 2")
    owners = run(federation, rounds=1)
    assert [line["contributors"] for line in federation.history()] == [2]
    (declined,) = of_kind(federation, "carol", "declined")
    assert declined["reason"] == "TOO_FEW_EXAMPLES"
    assert "sent" not in kinds(federation, "carol")
    assert "asks for at least 2 (min_examples)" in owners["carol"].output()
    federation.check_model(["alice", "bob"])


def test_a_model_with_a_value_that_no_trained_model_has_is_not_trained_on(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    mark_opened_data(federation)
    suspect = {"weight": torch.tensor([[1.0, 2e9]]), "bias": torch.zeros(1)}
    (federation.home / "initial.safetensors").write_bytes(save(suspect))
    federation.aggregator()
    for node in federation.owners().values():
        node.says("owner is ready")
    coordinator = federation.coordinator(rounds=1)
    assert coordinator.ends() == 1, coordinator.output()
    # The first decline ends a round of two, and the other owner may come too late for one of its own.
    declined = [facts for owner in TWO for facts in of_kind(federation, owner, "declined")]
    assert {facts["reason"] for facts in declined} == {"MODEL_SUSPECT"}
    assert all("weight" in facts["why"] for facts in declined)
    for owner in TWO:
        assert "sent" not in kinds(federation, owner)
        assert not (federation.home / "data" / owner / "opened").exists()


def test_a_metric_that_the_owners_file_does_not_list_does_not_leave(
    federate: MakeFederation,
) -> None:
    federation = federate({"alice": 0.731546, "bob": -0.3})
    federation.edit("alice", 'metrics = ["value"]', "metrics = []")
    owners = run(federation, rounds=1)
    (sent,) = of_kind(federation, "alice", "sent")
    assert (sent["metrics"], sent["dropped_metrics"]) == ({}, ["value"])
    (sent,) = of_kind(federation, "bob", "sent")
    assert (sent["metrics"], sent["dropped_metrics"]) == ({"value": -0.3}, [])
    (line,) = owners["alice"].events("metrics that this owner's file does not list are dropped")
    assert line["metrics"] == ["value"]
    assert "731546" not in owners["alice"].output()
    assert federation.history()[0]["metrics"] == {}


def test_a_clip_bounds_how_far_a_release_is_from_its_base(federate: MakeFederation) -> None:
    federation = federate(TWO)
    for owner in TWO:
        federation.edit(owner, "min_examples = 1", "min_examples = 1\nclip = 0.01")
    run(federation, rounds=1)
    release = load_file(federation.out / "model.safetensors")
    unclipped = federation.expected(["alice", "bob"])
    moved, would_move = (
        np.sqrt(sum(np.sum((np.float64(m[n]) - np.float64(b)) ** 2) for n, b in base.items()))
        for base in [{n: t.numpy() for n, t in federation.initial.items()}]
        for m in ({n: t.numpy() for n, t in release.items()}, unclipped)
    )
    assert would_move > 0.1
    assert 0 < moved <= 0.01 + 1e-6
    assert [f["clipped"] for o in TWO for f in of_kind(federation, o, "sent")] == [True, True]


def test_the_ledger_says_exactly_what_left_and_that_it_was_counted(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    run(federation, rounds=2)
    recorded(federation, "bob", "released", 2)
    assert kinds(federation, "bob") == ["joined", "sent", "receipt", "released"] * 2
    base = federation.expected()
    for number, facts in enumerate(of_kind(federation, "bob", "sent"), 1):
        update = {n: b * np.float32(0.5) + np.float32(-0.3) for n, b in base.items()}
        file = save({name: torch.from_numpy(values) for name, values in update.items()})
        assert facts["payload_digest"] == blake3(file).hexdigest()
        assert (facts["round"], facts["bytes"], facts["tensors"]) == (number, 12, 2)
        assert (facts["examples"], facts["metrics"]) == (1, {"value": -0.3})
        assert facts["destination"].startswith("sha256:")
        base = federation.expected(*[["alice", "bob"]] * number)
    assert [facts["counted"] for facts in of_kind(federation, "bob", "released")] == [True, True]
    digest = blake3((federation.out / "model.safetensors").read_bytes()).hexdigest()
    assert of_kind(federation, "bob", "released")[-1]["release_digest"] == digest


def begin_again(federation: Federation) -> None:
    """Take the aggregator's state away, and the coordinator's run."""
    for node in federation.nodes:
        node.kill()
    shutil.rmtree(federation.files / "aggregator/state")
    shutil.rmtree(federation.out)


def test_rounds_never_go_backward_across_a_restart(federate: MakeFederation) -> None:
    federation = federate(TWO)
    run(federation, rounds=2)
    begin_again(federation)
    federation.aggregator()
    federation.owners()
    federation.coordinator(rounds=2)
    declined = recorded(federation, "alice", "declined", 1)
    assert (declined[0]["reason"], declined[0]["round"]) == ("STALE_ROUND", 1)
    assert kinds(federation, "alice").count("sent") == 2


def test_an_aggregator_that_lost_its_ledger_is_found_out_by_what_an_owner_has_seen(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    run(federation, rounds=1)
    begin_again(federation)
    aggregator = federation.aggregator()
    federation.owners()
    federation.coordinator(name="another", rounds=1)
    aggregator.says("behind a head that this aggregator signed")
    aggregator.ends()
    for owner in TWO:
        assert kinds(federation, owner).count("sent") == 1


def test_an_aggregators_state_from_before_a_release_is_found_out_at_the_next_join(
    federate: MakeFederation,
) -> None:
    """The copy has every entry that the joins have shown: only the release is missing."""
    federation = federate(TWO)
    state, copy = federation.files / "aggregator/state", federation.home / "copy"
    federation.gate("bob", 1)
    federation.aggregator()
    for node in federation.owners().values():
        node.says("owner is ready")
    coordinator = federation.coordinator(rounds=1)
    recorded(federation, "alice", "receipt", 1)
    with federation.held("bob", 1):
        shutil.copytree(state, copy)
    assert coordinator.ends() == 0, coordinator.output()
    for owner in TWO:
        recorded(federation, owner, "released", 1)
    begin_again(federation)
    copy.rename(state)
    aggregator = federation.aggregator()
    federation.owners()
    federation.coordinator(name="another", rounds=1)
    aggregator.says("behind a head that this aggregator signed")
    aggregator.ends()
    for owner in TWO:
        assert kinds(federation, owner).count("sent") == 1


def test_the_ledger_is_for_the_owners_own_account_also_in_a_directory_that_others_can_read(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    state = federation.files / "alice/state"
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o755)
    federation.owner("alice").says("owner is ready")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
    assert {"owner.sqlite", "owner.sqlite-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_ledger_that_was_changed_keeps_its_owner_from_starting(federate: MakeFederation) -> None:
    federation = federate(TWO)
    run(federation, rounds=1)
    for node in federation.nodes:
        node.kill()
    path = federation.files / "alice/state/owner.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE ledger SET body = CAST(replace(body, '\"bytes\":12', '\"bytes\":11') AS BLOB)"
        )
    node = federation.owner("alice")
    assert node.ends() == 2
    sentence = node.output().splitlines()[-1]
    assert (
        f"error: the ledger in {path.parent} was tampered with or is damaged: entry 2" in sentence
    )
    assert "Traceback" not in node.output()


def test_two_nodes_cannot_write_one_ledger(federate: MakeFederation) -> None:
    federation = federate(TWO)
    federation.owner("alice").says("owner is ready")
    second = federation.owner("alice")
    assert second.ends() == 2
    assert "alice/state is in use by another node" in second.output()


@pytest.mark.parametrize(
    "key", ["metrics = [3]", "min_examples = 0", "clip = 0.0", "max_rounds = 0"]
)
def test_a_rule_that_cannot_be_is_named(federate: MakeFederation, key: str) -> None:
    federation = federate(TWO)
    name = key.partition(" ")[0]
    text = (federation.files / "alice.toml").read_text().splitlines()
    text = [line for line in text if not line.startswith(f"{name} =")]
    text.insert(text.index("[tasks.halving]") + 1, key)
    (federation.files / "alice.toml").write_text("\n".join(text))
    node = federation.owner("alice")
    assert node.ends() == 2
    assert f"alice.toml: tasks.halving.{name}" in node.output()
