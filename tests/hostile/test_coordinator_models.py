"""Models that a coordinator crafts: another one for one owner, values that tear a gradient open, other bytes.

The rounds are opened by the aggregator itself, so that only the owner can notice.
"""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cairn.model.schema import Schema, TensorSpec
from cairn.model.validation import Bounds, check_values
from cairn.tasks.state_dict import payload_of
from owner_node.settings import OwnerSettings
from tests.hostile.attacks import INVALID
from tests.hostile.checks import opened_files, refuses
from tests.hostile.stage import LINEAR, Stage, fresh_base
from tests.service.network import Ended, Job, OpenRound

OTHERS = ("bob", "carol", "dave")
COHORT = ("alice", *OTHERS)


@pytest.fixture
def unopened(stage: Stage) -> Iterator[Stage]:
    """The stage; after the test alice must have opened none of its data, and sent nothing."""
    sent = len(stage.entries("sent"))
    with opened_files(stage.data) as opened:
        yield stage
        assert opened() == []
    assert len(stage.entries("sent")) == sent


def ended_without_alice(stage: Stage, opened: OpenRound, reason: str) -> Ended:
    """Invite alice, which declines for this reason; the others' average is released."""
    stage.declines(opened.signed, opened.job.body, reason)
    size = opened.job.spec.schema.total_bytes
    for owner in OTHERS:
        opened.join(owner)
        opened.push(owner, bytes(size))
    ended = opened.ends()
    assert ended.exclusions == {"alice": reason}
    assert (ended.statement.contributors, ended.payload) == (3, bytes(size))
    return ended


def opened_with(stage: Stage, job: Job, base: bytes, served: bytes) -> OpenRound:
    """A round of `base` in which the coordinator serves other bytes."""
    opened = job.open(COHORT, base)
    stage.coordinator.models[opened.manifest.base_digest] = served
    return opened


@pytest.mark.parametrize("position", [0, 5, 11])
def test_a_model_of_which_one_byte_differs_is_not_trained_on(
    unopened: Stage, position: int
) -> None:
    base = fresh_base()
    flipped = bytearray(base)
    flipped[position] ^= 1
    opened = opened_with(unopened, unopened.job(), base, bytes(flipped))
    ended_without_alice(unopened, opened, "BASE_MISMATCH")


class _Runs:
    """Where it is unpickled, a file appears."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._sentinel,)


def torch_script(path: Path) -> bytes:
    """The archive that `torch.jit` and `torch.save` write: a zip with a pickle in it."""
    torch.save(nn.Linear(2, 1).state_dict(), path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["pickle", "archive", "one byte short", "one byte more", "none"])
def test_bytes_that_are_no_model_of_the_schema_are_not_used(
    unopened: Stage, tmp_path: Path, kind: str
) -> None:
    sentinel, base = tmp_path / "was-run", fresh_base()
    served = {
        "pickle": pickle.dumps(_Runs(sentinel)),
        "archive": torch_script(tmp_path / "model.pt"),
        "one byte short": base[:-1],
        "one byte more": base + b"\0",
        "none": b"",
    }
    opened = opened_with(unopened, unopened.job(), base, served[kind])
    ended_without_alice(unopened, opened, "BASE_MISMATCH")
    assert not sentinel.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -2e9])
@pytest.mark.parametrize("position", [0, 2])
def test_a_first_model_with_a_value_that_no_model_has_is_not_trained_on(
    unopened: Stage, value: float, position: int
) -> None:
    crafted = np.frombuffer(fresh_base(), "<f4").copy()
    crafted[position] = value
    opened = opened_with(unopened, unopened.job(), crafted.tobytes(), crafted.tobytes())
    ended_without_alice(unopened, opened, "MODEL_SUSPECT")


def test_a_first_model_that_differs_from_another_in_the_sign_of_a_zero_is_not_trained_on(
    unopened: Stage,
) -> None:
    """To the aggregator, which sees digests, it would be another base, to which no earlier release compares."""
    plain, signed = (np.frombuffer(fresh_base(), "<f4").copy() for _ in range(2))
    signed[0] = plain[0]
    plain[1], signed[1] = 0.0, -0.0
    assert (plain == signed).all()
    opened = unopened.job().open(OTHERS, plain.tobytes())
    for owner in OTHERS:
        opened.join(owner)
        opened.push(owner, bytes(12))
    assert opened.ends().statement.contributors == 3
    twin = opened_with(unopened, unopened.job(), signed.tobytes(), signed.tobytes())
    ended_without_alice(unopened, twin, "MODEL_SUSPECT")


def modules() -> list[nn.Module]:
    torch.manual_seed(0)
    image = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)
    )
    text = nn.Sequential(
        nn.Embedding(1000, 32),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
        nn.LayerNorm(32),
        nn.Linear(32, 1000),
    )
    return [image, text]


@pytest.mark.parametrize("module", modules(), ids=["image", "text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_normal_first_model_passes(module: nn.Module, dtype: torch.dtype) -> None:
    state = {
        name: values.to(dtype) if values.is_floating_point() else values
        for name, values in module.state_dict().items()
    }
    largest = OwnerSettings.model_fields["largest_value"].default
    check_values(*payload_of(state), Bounds(value=largest))


def schemas() -> dict[str, Sequence[TensorSpec]]:
    weight, bias = TensorSpec("weight", "F32", (1, 2)), TensorSpec("bias", "F32", (1,))
    return {
        "missing": [weight],
        "extra": [weight, bias, TensorSpec("extra", "F32", (1,))],
        "empty extra": [weight, bias, TensorSpec("extra", "F32", (0,))],
        "renamed": [weight, TensorSpec("bais", "F32", (1,))],
        "transposed": [TensorSpec("weight", "F32", (2, 1)), bias],
        "flat": [TensorSpec("weight", "F32", (2,)), bias],
        "larger": [TensorSpec("weight", "F32", (2, 2)), bias],
        "no elements": [TensorSpec("weight", "F32", (0, 2)), bias],
        "integers": [TensorSpec("weight", "I32", (1, 2)), bias],
        "doubles": [TensorSpec("weight", "F64", (1, 2)), bias],
        "halves": [TensorSpec("weight", "BF16", (1, 2)), bias],
        "path-like": [weight, TensorSpec("../bias", "F32", (1,))],
    }


@pytest.mark.parametrize("kind", schemas())
def test_a_model_of_other_tensors_than_the_owners_own_is_not_trained_on(
    unopened: Stage, kind: str
) -> None:
    schema = Schema.of(schemas()[kind])
    base = bytes(schema.total_bytes)
    opened = opened_with(unopened, unopened.job(schema=schema), base, base)
    ended_without_alice(unopened, opened, "SCHEMA_MISMATCH")


def test_an_owner_that_trained_on_another_model_is_not_counted(stage: Stage) -> None:
    """Were its own check off, the aggregator would still refuse what it trained."""
    opened = stage.job().open(COHORT, fresh_base())
    opened.join("dave")
    another = LINEAR.digest(bytes(12))
    with refuses(stage.network, "owner/dave", "SubmitUpdate", INVALID, "BASE_MISMATCH"):
        opened.push("dave", b"\0\0\x80\x3f" * 3, base_digest=another)
    for owner in ("alice", "bob", "carol"):
        opened.join(owner)
        opened.push(owner, bytes(12))
    ended = opened.ends()
    assert (ended.exclusions, ended.payload) == ({"dave": "BASE_MISMATCH"}, bytes(12))
