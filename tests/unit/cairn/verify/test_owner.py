"""`cairn verify` on an owner's ledger: what left, what was answered, and whether it counted."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from cairn.protocol.statements import STATEMENT, envelope, sign
from cairn.tasks.accounting import PrivateSteps, epsilon_of
from cairn.v1 import round_pb2 as pb
from tests.unit.cairn.verify.recorded import (
    KEY,
    OTHER_KEY,
    Chain,
    Federation,
    digest,
    in_base64,
    owners_chain,
    receipt_of,
    write_database,
    write_json,
    write_run,
)
from tests.unit.cairn.verify.test_verify import checked

MANIFEST = digest("manifest 1 train")


def owners_ledger(tmp_path: Path, chain: Chain) -> Path:
    write_database(tmp_path / "alice" / "owner.sqlite", chain.rows)
    return tmp_path / "alice"


@pytest.mark.parametrize("owner", ["alice", "carol"])
def test_an_owners_ledger_agrees_with_the_aggregators(tmp_path: Path, owner: str) -> None:
    federation = Federation()
    write_run(tmp_path / "run", federation)
    path = owners_ledger(tmp_path, owners_chain(owner, federation.statements))
    statement = tmp_path / "run" / "release.json"
    result = checked(path, "--ledger", tmp_path / "run", "--statement", statement)
    assert result.exit_code == 0, result.output
    assert "4 updates left; 4 receipts and 4 release statements are signed" in result.output
    assert "owner.sqlite, entry 5: tumours round 1 is entry 3 of ledger.jsonl" in result.output
    assert "release.json: tumours round 2: counted" in result.output


def test_an_owner_that_was_left_out_is_told_why(tmp_path: Path) -> None:
    federation = Federation()
    write_run(tmp_path / "run", federation)
    path = owners_ledger(tmp_path, owners_chain("dora", federation.statements))
    result = checked(path, "--statement", tmp_path / "run" / "release.json")
    assert result.exit_code == 0, result.output
    assert "release.json: tumours round 2: not counted (DEADLINE)" in result.output


def test_an_owner_that_knows_nothing_of_a_round_was_not_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Federation())
    path = owners_ledger(tmp_path, Chain())
    result = checked(path, "--statement", tmp_path / "run" / "release.json")
    assert result.exit_code == 0, result.output
    assert "not counted (the owner holds no receipt for it)" in result.output


def without_alices_receipt() -> pb.Signed:
    """The statement of round 1, signed by an aggregator that left alice's accepted update out."""
    statement = pb.ReleaseStatement.FromString(Federation().statements[0].body)
    statement.commitments.remove(sha256(receipt_of("alice", MANIFEST).body).digest())
    statement.commitments.append(digest("another"))
    return sign(KEY, STATEMENT, statement.SerializeToString())


def test_a_statement_that_does_not_list_the_owners_receipt_is_found(tmp_path: Path) -> None:
    path = owners_ledger(tmp_path, owners_chain("alice", Federation().statements))
    write_json(tmp_path / "round-1.json", envelope(without_alices_receipt()))
    result = checked(path, "--statement", tmp_path / "round-1.json")
    assert result.exit_code == 1
    assert (
        "FAILED round-1.json: tumours round 1: not counted (no reason is given), although the owner"
        " holds a receipt"
    ) in result.output


def test_a_statement_that_another_key_signed_is_not_believed(tmp_path: Path) -> None:
    path = owners_ledger(tmp_path, owners_chain("alice", Federation().statements))
    forged = sign(OTHER_KEY, STATEMENT, Federation().statements[0].body)
    write_json(tmp_path / "round-1.json", envelope(forged))
    result = checked(path, "--statement", tmp_path / "round-1.json")
    assert result.exit_code == 1
    assert "FAILED round-1.json: the signature" in result.output
    assert "counted" not in result.output


def test_receipts_that_another_key_signed_are_named(tmp_path: Path) -> None:
    chain = owners_chain("alice", Federation().statements, key=OTHER_KEY)
    result = checked(owners_ledger(tmp_path, chain))
    assert result.exit_code == 1
    assert "FAILED owner.sqlite, entry 4: the signature of the cairn.v1.Receipt" in result.output


def excluding_alice_whose_receipt_it_lists() -> pb.Signed:
    statement = pb.ReleaseStatement.FromString(Federation().statements[0].body)
    statement.exclusions.add(owner="alice", reason=pb.REASON_DEADLINE)
    return sign(KEY, STATEMENT, statement.SerializeToString())


def sent(chain: Chain, **changes: object) -> None:
    facts = {
        "manifest_digest": MANIFEST.hex(),
        "payload_digest": digest("alice's update").hex(),
        "examples": 120,
        "metrics": {"loss": 0.25},
    }
    chain.add("sent", **(facts | changes))


def received(chain: Chain, **changes: object) -> None:
    facts = {"manifest_digest": MANIFEST.hex(), "receipt": in_base64(receipt_of("alice", MANIFEST))}
    chain.add("receipt", **(facts | changes))


def released(chain: Chain, signed: pb.Signed | None = None, **changes: object) -> None:
    signed = signed or Federation().statements[0]
    statement = pb.ReleaseStatement.FromString(signed.body)
    facts = {
        "job": "tumours",
        "round": 1,
        "phase": "train",
        "manifest_digest": MANIFEST.hex(),
        "release_digest": statement.release_digest.hex(),
        "contributors": 3,
        "counted": True,
        "statement": in_base64(signed),
    }
    chain.add("released", **(facts | changes))


def joined(chain: Chain, number: object) -> None:
    chain.add("joined", job="tumours", round=number)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([received], "entry 1: the receipt is for an update that no entry before it sent"),
        (
            [lambda c: sent(c, examples=121), received],
            "entry 2: the receipt is not for what entry 1 sent: it says examples 121 instead of 120",
        ),
        (
            [lambda c: sent(c, metrics={"loss": 0.5}), received],
            "entry 2: the receipt is not for what entry 1 sent: it says metrics {'loss': 0.5}",
        ),
        (
            [lambda c: sent(c, metrics={"loss": "0.25"}), received],
            "entry 2: the receipt is not for what entry 1 sent: it says metrics None",
        ),
        (
            [lambda c: sent(c, metrics={"loss": 0.25, "l" * 1000: 0}), received],
            "entry 2: the receipt is not for what entry 1 sent: it says metrics None",
        ),
        (
            [lambda c: sent(c, payload_digest="00" * 32), received],
            "entry 2: the receipt is not for what entry 1 sent: it says payload_digest",
        ),
        (
            [sent, lambda c: received(c, manifest_digest="00" * 32)],
            "entry 2: the receipt is for another manifest than the entry says",
        ),
        (
            [sent, received, lambda c: received(c, receipt=in_base64(receipt_of("bob", MANIFEST)))],
            "entry 3: the receipt is one of bob, not of alice",
        ),
        ([sent, lambda c: received(c, receipt="!")], "entry 2: its receipt is not in base64"),
        ([sent, lambda c: received(c, receipt=7)], "entry 2: its receipt is not in base64"),
        ([released], "entry 1: it says counted, but the ledger has no receipt for that round"),
        (
            [sent, received, lambda c: released(c, without_alices_receipt())],
            "entry 3: it says counted, but the statement does not list the owner's receipt",
        ),
        (
            [sent, received, lambda c: released(c, without_alices_receipt(), counted=False)],
            "entry 3: it says not counted, but the owner holds a receipt and the statement does not",
        ),
        (
            [sent, received, lambda c: released(c, counted=False)],
            "entry 3: it says not counted, but the statement lists the owner's receipt",
        ),
        (
            [
                sent,
                received,
                lambda c: released(c, excluding_alice_whose_receipt_it_lists(), counted=False),
            ],
            "entry 3: it says not counted, but the statement lists the owner's receipt",
        ),
        ([lambda c: released(c, counted=None)], "entry 1: it does not say whether"),
        ([lambda c: released(c, round=2)], "entry 1: it has round 2 instead of 1"),
        ([lambda c: released(c, contributors=9)], "entry 1: it has contributors 9 instead of 3"),
        (
            [lambda c: joined(c, 2), lambda c: joined(c, 1)],
            "entry 2: it joins round 1 of 'tumours'",
        ),
        ([lambda c: joined(c, "2")], "entry 1: it does not say which round"),
    ],
)
def test_each_entry_that_does_not_agree_is_named(
    tmp_path: Path, steps: list[Callable[[Chain], None]], words: str
) -> None:
    chain = Chain()
    for step in steps:
        step(chain)
    result = checked(owners_ledger(tmp_path, chain))
    assert result.exit_code == 1
    assert f"FAILED owner.sqlite, {words}" in result.output


def test_an_owner_that_was_excluded_need_not_have_pushed(tmp_path: Path) -> None:
    chain = Chain()
    joined(chain, 1)
    joined(chain, 1)  # the evaluation of the same round
    released(chain, counted=False, reason="DEADLINE")
    assert checked(owners_ledger(tmp_path, chain)).exit_code == 0


def test_an_update_whose_receipt_was_lost_did_leave(tmp_path: Path) -> None:
    chain = Chain()
    joined(chain, 1)
    sent(chain)
    released(chain, counted=False, why="this owner holds no receipt")
    assert checked(owners_ledger(tmp_path, chain)).exit_code == 0


NEVER_LEFT = (
    "tumours round 1: the statement does not exclude this owner, although no update of its left for that"
    " round"
)


def of_another_round(chain: Chain) -> None:
    """A round of another job in which alice was counted, so that a receipt tells her name."""
    manifest = digest("another manifest")
    sent(chain, manifest_digest=manifest.hex())
    received(
        chain,
        manifest_digest=manifest.hex(),
        receipt=in_base64(receipt_of("alice", manifest)),
    )


def excluding_nobody() -> pb.Signed:
    statement = pb.ReleaseStatement.FromString(Federation().statements[0].body)
    statement.ClearField("exclusions")
    return sign(KEY, STATEMENT, statement.SerializeToString())


@pytest.mark.parametrize(
    ("steps", "entry"),
    [
        ([lambda c: released(c, counted=False)], 1),
        ([lambda c: joined(c, 1), lambda c: released(c, counted=False, why="no receipt")], 2),
        ([lambda c: released(c, excluding_nobody(), counted=False, reason="DEADLINE")], 1),
        # The name is known: dora's exclusion is not hers.
        ([of_another_round, lambda c: released(c, counted=False, reason="DEADLINE")], 3),
        ([lambda c: released(c, counted=False, reason="DEADLINE"), of_another_round], 1),
    ],
    ids=["not invited", "joined", "nobody excluded", "named before", "named after"],
)
def test_a_statement_that_counts_what_never_left_is_found(
    tmp_path: Path, steps: list[Callable[[Chain], None]], entry: int
) -> None:
    chain = Chain()
    for step in steps:
        step(chain)
    result = checked(owners_ledger(tmp_path, chain))
    assert result.exit_code == 1
    assert f"FAILED owner.sqlite, entry {entry}: {NEVER_LEFT}" in result.output


def test_a_statement_file_that_counts_what_never_left_is_found(tmp_path: Path) -> None:
    chain = Chain()
    chain.add("declined", manifest_digest=MANIFEST.hex(), reason="TASK_FAILED")
    of_another_round(chain)
    write_json(tmp_path / "round-1.json", envelope(Federation().statements[0]))
    path = owners_ledger(tmp_path, chain)
    assert checked(path).exit_code == 0
    result = checked(path, "--statement", tmp_path / "round-1.json")
    assert result.exit_code == 1
    assert f"FAILED round-1.json: {NEVER_LEFT}" in result.output


def test_a_round_without_an_invitation_is_judged_by_its_cohort(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Federation())
    chain = Chain()
    of_another_round(chain)
    path = owners_ledger(tmp_path, chain)
    statement = ("--statement", tmp_path / "run" / "release.json")
    unknown = checked(path, *statement)
    assert unknown.exit_code == 0
    assert "not counted (the owner holds no receipt for it)" in unknown.output
    result = checked(path, *statement, "--ledger", tmp_path / "run")
    assert result.exit_code == 1
    assert f"FAILED release.json: {NEVER_LEFT.replace('round 1', 'round 2')}" in result.output


def test_a_statement_that_the_aggregators_ledger_lacks_is_found(tmp_path: Path) -> None:
    federation = Federation()
    chain = owners_chain("alice", federation.statements)
    write_database(tmp_path / "aggregator" / "aggregator.sqlite", federation.ledger.rows[:6])
    result = checked(owners_ledger(tmp_path, chain), "--ledger", tmp_path / "aggregator")
    assert result.exit_code == 1
    assert "owner.sqlite, entry 13: aggregator.sqlite ends at entry 6" in result.output


def test_an_owners_ledger_is_not_taken_for_an_aggregators(tmp_path: Path) -> None:
    path = owners_ledger(tmp_path, owners_chain("alice", Federation().statements))
    assert checked(path, "--ledger", path).exit_code == 2


def test_a_reset_is_told_and_one_that_says_nothing_is_found(tmp_path: Path) -> None:
    chain = owners_chain("alice", Federation().statements)
    chain.add("reset", task="mean", failures=2)
    chain.add("reset", task="other", failures=0)
    result = checked(owners_ledger(tmp_path, chain))
    assert result.exit_code == 0, result.output
    assert "2 failures of 'mean' are forgiven" in result.output
    assert "0 failures of 'other' are forgiven" in result.output
    chain.add("reset", task="mean", failures=True)
    result = checked(owners_ledger(tmp_path / "other", chain))
    assert result.exit_code == 1
    assert "does not say how many failures of which task" in result.output


def spent(rate: float, epsilon: float, task: str = "mean") -> dict[str, object]:
    numbers = {"sample_rate": rate, "noise": 1.0, "steps": 4, "delta": 1e-5}
    round_ = {"manifest_digest": MANIFEST.hex(), "job": "job", "round": 1, "loop": 1}
    return {**round_, **numbers, "task": task, "epsilon": epsilon, "epsilon_allowed": 5.0}


def test_what_private_training_spent_is_computed_anew_from_all_of_its_entries(
    tmp_path: Path,
) -> None:
    first = PrivateSteps(0.25, 1.0, 4)
    one, both = (
        epsilon_of(steps, 1e-5) for steps in ([first], [first, PrivateSteps(0.125, 1.0, 4)])
    )
    chain = owners_chain("alice", Federation().statements)
    chain.add("spent", **spent(0.25, one))
    chain.add("spent", **spent(0.25, one, task="other"))
    chain.add("spent", **spent(0.125, both))
    result = checked(owners_ledger(tmp_path, chain))
    assert result.exit_code == 0, result.output
    for task, epsilon in (("mean", both), ("other", one)):
        sentence = f"private training of '{task}': epsilon {epsilon:.3g} of 5 is spent"
        assert sentence in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epsilon": 0.5}, "says 0.5"),
        ({"epsilon": 5.5}, "it allows epsilon 5.5 at delta 1e-05, where 5 was allowed"),
        ({"sample_rate": 2.0}, "does not say which private training"),
        ({"steps": None}, "does not say which private training"),
        ({"noise": 1e-9}, "does not say which private training"),
        ({"sample_rate": 5e-324}, "does not say which private training"),
        ({"noise": 10**400}, "does not say which private training"),
        ({"epsilon": 10**400}, "does not say which private training"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_of_private_training_that_does_not_add_up_is_named(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    chain = owners_chain("alice", Federation().statements)
    chain.add("spent", **spent(0.25, 1.0) | changes)
    result = checked(owners_ledger(tmp_path, chain))
    assert result.exit_code == 1
    assert complaint in " ".join(result.output.split())


def test_an_owner_reads_its_own_reason_where_a_statement_says_less(tmp_path: Path) -> None:
    write_run(tmp_path / "run", Federation())
    chain = Chain()
    chain.add("declined", manifest_digest=digest("manifest 2 train").hex(), reason="TASK_FAILED")
    path = owners_ledger(tmp_path, chain)
    result = checked(path, "--statement", tmp_path / "run" / "release.json")
    assert result.exit_code == 0, result.output
    assert "not counted (TASK_FAILED)" in result.output
