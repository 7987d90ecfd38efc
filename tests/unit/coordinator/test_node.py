"""What a coordinator says of a job before anything is sent."""

from pathlib import Path

import pytest

from cairn.errors import UsageError
from cairn.model.schema import Schema, TensorSpec
from coordinator.groups import groups_of
from coordinator.job import planned
from coordinator.settings import JobSettings

OWNERS = ["frank", "alice", "bob", "erin", "carol", "dave"]
SMALL = Schema.of([TensorSpec("weight", "F32", (1,))])


def test_a_job_with_a_fraction_is_registered_with_its_groups() -> None:
    job = JobSettings(
        name="tumours",
        task="segment",
        model=Path("model.safetensors"),
        rounds=1,
        owners=OWNERS,
        fraction=0.5,
        seed=3,
    )
    plan = planned(job, "clinics", SMALL)
    assert plan.spec.groups == plan.sampling.groups == groups_of(OWNERS, 2, 3, "tumours")
    whole = planned(job.model_copy(update={"fraction": 1}), "clinics", SMALL)
    assert whole.spec.groups == ()
    assert whole.sampling.groups == (tuple(sorted(OWNERS)),)


def test_a_model_whose_list_of_tensors_is_too_large_is_a_mistake_in_one_sentence() -> None:
    job = JobSettings(
        name="tumours",
        task="segment",
        model=Path("model.safetensors"),
        rounds=1,
        owners=["alice", "bob", "carol"],
    )
    names = [f"{number:0512}" for number in range(32_768)]  # 512 bytes each: 16 MiB of names alone
    schema = Schema.of([TensorSpec(name, "F32", (1,)) for name in names])
    with pytest.raises(UsageError) as mistake:
        planned(job, "clinics", schema)
    sentence = str(mistake.value)
    assert sentence.startswith("the job tumours cannot be run: ")
    assert str(16 << 20) in sentence
    assert "\n" not in sentence
    smaller = Schema.of([TensorSpec(name, "F32", (1,)) for name in names[:30_000]])
    assert planned(job, "clinics", smaller).spec.schema == smaller
