"""What must hold after every fault, whatever it was: read from files, by arithmetic of its own."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors.numpy import load_file

from cairn.cli.verify import pinned_key
from cairn.identity.signing_keys import load_signing_key
from cairn.verify.verify import Evidence, verify
from tests.chaos.marking import COLUMNS, OWNERS, score
from tests.chaos.stage import Stage
from tests.hostile.audit import Round, check_books, rounds_in
from tests.hostile.checks import Entry, database, owner_entries

Model = Mapping[str, np.ndarray]


def check(stage: Stage, faultless: Model | None = None) -> None:
    """The job has ended as it should, and everybody's records agree on who was counted.

    `faultless` is the model of a run of as many rounds in which nothing failed.
    """
    released = released_rounds(stage)
    check_books(stage.state, signing_key(stage))
    assert len(released) == stage.rounds
    assert [(line["round"], line["contributors"]) for line in stage.history()] == [
        (number, len(counted)) for number, counted in released.items()
    ]
    check_model(stage.model(), list(released.items()), faultless)
    if stage.looks_for_best:
        check_best(stage, released)
    check_owners(stage, released)
    check_kept(stage)
    check_verified(stage)
    check_secrets(stage)


def signing_key(stage: Stage) -> Ed25519PublicKey:
    return load_signing_key(stage.files / "aggregator" / "signing.key").public_key()


def released_rounds(stage: Stage) -> dict[int, frozenset[str]]:
    """Whom each release of the job counts, by the aggregator's signed statements."""
    return {found.manifest.round: found.counted for found in _rounds(stage) if found.statement}


def check_model(
    model: Model, released: list[tuple[int, frozenset[str]]], faultless: Model | None
) -> None:
    """Each owner that was counted is in the average of its round once, and nobody else is.

    Where everybody always was, the weights are, bit by bit, those of a run without a fault, if it is given.
    """
    marks = np.zeros_like(model["counted"])
    weight = np.zeros_like(model["weight"])
    for number, counted in released:
        for owner in counted:
            marks[number - 1, COLUMNS[owner]] = np.float32(1 / len(counted))
        total = np.zeros(weight.shape)
        for owner in counted:
            total += weight * np.float32(0.5) + np.float32(OWNERS[owner])
        weight = (total / len(counted)).astype(np.float32)
    np.testing.assert_array_equal(model["counted"], marks)
    assert model["weight"].tobytes() == weight.tobytes()
    if faultless is not None and all(counted == OWNERS.keys() for _, counted in released):
        assert model["weight"].tobytes() == faultless["weight"].tobytes()
        assert model["secret"].tobytes() == faultless["secret"].tobytes()


def check_best(stage: Stage, released: dict[int, frozenset[str]]) -> None:
    """The best model and its statement are those of the release with the highest score, as the history has it."""
    best = max(released, key=score)
    check_model(
        stage.model("best.safetensors"), [r for r in released.items() if r[0] <= best], None
    )
    statement = json.loads((stage.out / "best.json").read_text())["statement"]
    assert (statement["round"], statement["phase"]) == (best, "train")
    bests = [line["best"] for line in stage.history()]
    assert bests == [max((n for n in released if n <= m), key=score) for m in released]


def check_owners(stage: Stage, released: dict[int, frozenset[str]]) -> None:
    """An owner holds that it was counted exactly where it was; and where it was, it sent an update."""
    for owner in OWNERS:
        entries = [
            e for e in owner_entries(stage.state_of(owner)) if e.facts.get("job") == stage.job
        ]
        sent = {e.facts["round"] for e in entries if e.kind == "sent"}
        assert {number for number, counted in released.items() if owner in counted} <= sent
        for entry in entries:
            if entry.kind != "released":
                continue
            is_counted = owner in released[entry.facts["round"]]
            assert entry.facts["counted"] == is_counted, (owner, entry)


def check_kept(stage: Stage) -> None:
    """What an owner keeps was trained as often as its ledger has it counted, and neither more nor less often."""
    for owner in OWNERS:
        trained = {
            entry.facts["manifest_digest"]
            for entry in entries_of(stage, owner, "sent")
            if entry.facts["phase"] == "train"
        }
        counted = [
            entry.facts["manifest_digest"]
            for entry in entries_of(stage, owner, "released")
            if entry.facts["counted"] and entry.facts["manifest_digest"] in trained
        ]
        if counted:
            (path,) = (stage.state_of(owner) / "kept").glob(f"{counted[-1]}.*.safetensors")
            kept = load_file(path)
            assert kept["trained"].tolist() == [len(counted)], owner


def check_verified(stage: Stage) -> None:
    """`cairn verify` finds nothing wrong with the run and with any node's ledger."""
    key = pinned_key(None, stage.files / "coordinator.toml")
    release = (stage.out / "release.json",)
    checks = [(stage.out, Evidence(key, None, ()))]
    checks += [(stage.state_of(o), Evidence(key, stage.out, release)) for o in OWNERS]
    for path, against in checks:
        findings = list(verify(path, against))
        assert findings
        assert all(finding.good for finding in findings), [f for f in findings if not f.good]


def check_secrets(stage: Stage) -> None:
    """No bytes of a single update are on the aggregator's disk, in its log or in the run's folder."""
    files = [*_files(stage.state), *_files(stage.out), stage.home / "aggregator.log"]
    for file in files:
        content = file.read_bytes()
        for owner, secret in stage.secrets.items():
            assert secret.tobytes() not in content, (owner, file)


def check_nothing_half_written(stage: Stage) -> None:
    """What was begun and not kept is gone from the aggregator's releases and the run's folder."""
    for folder in (stage.state / "releases", stage.out):
        assert not list(folder.glob(".cairn-*"))


def entries_of(stage: Stage, owner: str, kind: str) -> list[Entry]:
    """What an owner's ledger holds of the present job."""
    entries = owner_entries(stage.state_of(owner))
    return [e for e in entries if e.kind == kind and e.facts.get("job") == stage.job]


def _rounds(stage: Stage) -> list[Round]:
    with database(stage.state / "aggregator.sqlite") as db:
        rounds = rounds_in(db, signing_key(stage))
    return [found for found in rounds if found.manifest.job == stage.job]


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())
