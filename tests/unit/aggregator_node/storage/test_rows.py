"""A specification is read once while it is kept, and large ones are not kept beside others."""

from aggregator_node.storage.rows import spec_of
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.messages import JobSpec, job_spec_to_bytes
from cairn.v1 import round_pb2 as pb

LARGE = 60_000  # tensors: two such specifications have more than 16 MiB together


def body(name: str, tensors: int = 1) -> bytes:
    schema = Schema.of(
        [TensorSpec(f"{number:06d}" + "x" * 150, "F32", (1,)) for number in range(tensors)]
    )
    return job_spec_to_bytes(
        JobSpec(
            federation="ward",
            name=name,
            task="task",
            settings={},
            owners=("alice", "bob"),
            floor=2,
            rounds=1,
            weighting=pb.WEIGHTING_EQUAL,
            schema=schema,
            round_deadline_seconds=60,
            min_examples=1,
            max_examples=1,
            groups=(),
        )
    )


def test_small_specifications_are_read_once() -> None:
    bodies = [body(f"job-{number}") for number in range(8)]
    read = [spec_of(each) for each in bodies]
    assert all(spec_of(each) is spec for each, spec in zip(bodies, read, strict=True))


def test_a_large_specification_is_kept_until_another_large_one_comes() -> None:
    first, second = body("first", LARGE), body("second", LARGE)
    read = spec_of(first)
    assert spec_of(first) is read
    spec_of(second)
    assert spec_of(first) is not read
    spec_of(body("small"))
