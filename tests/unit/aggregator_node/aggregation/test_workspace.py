"""Which rounds fit into the aggregator's memory, and what of it is used again."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.workspace import MemoryBudget, Workspace, memory_of_this_machine
from aggregator_node.rounds.upload import RoundContext
from cairn.errors import LimitExceeded, Unavailable
from cairn.model.schema import Schema, TensorSpec
from cairn.model.validation import Bounds
from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec, Manifest
from cairn.v1 import round_pb2 as pb
from tests.scenarios.processes import ROOT
from tests.unit.aggregator_node.aggregation.whole import add_whole

MIB = 1 << 20
LARGE = Schema.of([TensorSpec("t", "F32", (10, MIB))])  # 40 MiB: one update and no more is small
UPDATE, SUMS = 40 * MIB, 80 * MIB + 10 * MIB // 4  # a sum is a binary64, and a few need two
COHORT = tuple(f"owner{number:04}" for number in range(1024))
ALWAYS = 1 << 40


def context(
    schema: Schema = LARGE,
    owners: int = 4,
    phase: "pb.Phase" = pb.PHASE_TRAIN,
    encoding: "pb.Encoding" = pb.ENCODING_WHOLE,
    most: int = 1,
    share: float = 0.5,
) -> RoundContext:
    """A round whose updates weigh all the same, or from 1 to `most`."""
    weighting = pb.WEIGHTING_EXAMPLES if most > 1 else pb.WEIGHTING_EQUAL
    manifest = Manifest(
        federation="ward",
        job="job",
        job_digest=bytes(32),
        round=1,
        phase=phase,
        cohort=COHORT[:owners],
        base_digest=bytes(32),
        previous_release_digest=b"",
        weighting=weighting,
        floor=2,
        deadline_unix_ms=0,
        lease_seconds=15,
        nonce=bytes(32),
        ledger_head=bytes(32),
        ledger_number=0,
        encoding=encoding,
        largest_share=share,
    )
    job = JobSpec(
        federation="ward",
        name="job",
        task="task",
        settings={},
        owners=COHORT[:owners],
        floor=2,
        rounds=1,
        weighting=weighting,
        schema=schema,
        round_deadline_seconds=60,
        min_examples=1,
        max_examples=most,
    )
    return RoundContext(manifest, job, Bounds(value=1.0, integer=1))


def workspace_of(
    memory: MemoryBudget, of: RoundContext, coordinator: str = "model-owner", now: float = 0
) -> Workspace:
    return memory.allocate(coordinator, of.size, now)


@contextmanager
def lent_buffers(workspace: Workspace, count: int) -> Iterator[list[memoryview]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(workspace.buffers.borrow(COHORT[n], lambda: False))
            for n in range(count)
        ]


def test_a_round_takes_its_sums_and_a_few_updates_however_many_owners_it_has() -> None:
    reckoned = {}
    for owners in (2, 3, 16, 1024):
        workspace = workspace_of(MemoryBudget(ALWAYS, 2), context(owners=owners))
        assert workspace.buffers.nbytes == UPDATE
        reckoned[owners] = workspace.nbytes, workspace.buffers.count
    assert set(reckoned.values()) == {(SUMS + 2 * UPDATE, 2)}


@pytest.mark.parametrize(("in_flight", "owners", "count"), [(1, 9, 1), (5, 9, 5), (5, 3, 3)])
def test_as_many_updates_are_under_way_as_the_file_says_and_never_more_than_owners(
    in_flight: int, owners: int, count: int
) -> None:
    workspace = workspace_of(MemoryBudget(ALWAYS, in_flight), context(owners=owners))
    assert (workspace.buffers.count, workspace.nbytes) == (count, SUMS + count * UPDATE)


def test_memory_with_as_many_buffers_is_not_used_again_where_fewer_of_them_may_be_kept() -> None:
    memory = MemoryBudget(ALWAYS, 2)
    workspaces = []
    for most in (1, 1000):
        workspaces.append(workspace_of(memory, context(owners=9, most=most)))
        memory.give_back(workspaces[-1])
    assert [(each.buffers.count, each.buffers.to_keep) for each in workspaces] == [(2, 0), (2, 1)]


def test_small_updates_never_wait() -> None:
    small = Schema.of([TensorSpec("t", "F32", (1000,))])
    workspace = workspace_of(MemoryBudget(ALWAYS, 1), context(small, owners=1024))
    assert workspace.buffers.count == 1024
    assert workspace.nbytes == 1024 * 4000 + 8000 + 250


@pytest.mark.parametrize(
    ("owners", "share", "count", "kept"),
    [(9, 0.5, 2, 1), (9, 0.25, 2, 3), (9, 0.1, 2, 7), (3, 0.5, 2, 1), (2, 0.5, 2, 0)],
)
def test_a_round_whose_weights_may_be_capped_has_buffers_for_what_is_held_back(
    owners: int, share: float, count: int, kept: int
) -> None:
    workspace = workspace_of(
        MemoryBudget(ALWAYS, 2), context(owners=owners, most=1000, share=share)
    )
    assert (workspace.buffers.count, workspace.buffers.to_keep) == (count, kept)
    assert workspace.nbytes == SUMS + (count + kept) * UPDATE


def test_a_round_whose_updates_weigh_the_same_holds_none_back() -> None:
    assert workspace_of(MemoryBudget(ALWAYS, 2), context(owners=9, share=0.1)).buffers.to_keep == 0


def test_small_updates_that_are_held_back_take_no_further_memory() -> None:
    small = Schema.of([TensorSpec("t", "F32", (1000,))])
    workspace = workspace_of(MemoryBudget(ALWAYS, 1), context(small, owners=1024, most=1000))
    assert (workspace.buffers.count, workspace.buffers.to_keep) == (1024, 0)


def test_the_sums_of_binary64_are_reckoned_with_the_errors_that_nearly_all_have() -> None:
    doubles = Schema.of([TensorSpec("t", "F64", (MIB,))])
    workspace = workspace_of(MemoryBudget(ALWAYS, 2), context(doubles, owners=2))
    assert workspace.nbytes == 2 * 8 * MIB + (8 + 8) * MIB


def test_a_rule_that_holds_updates_has_a_buffer_for_each_owner_and_no_sums() -> None:
    krum = Aggregation(rule=pb.RULE_MULTI_KRUM, rule_numbers={"byzantine": 1, "select": 3})
    plain = context(owners=8)
    collecting = replace(plain, job=replace(plain.job, aggregation=krum))
    workspace = workspace_of(MemoryBudget(ALWAYS, 2), collecting)
    assert workspace.buffers.count + workspace.buffers.to_keep == 8
    assert workspace.nbytes == 8 * UPDATE
    with pytest.raises(LimitExceeded, match="takes 336 MB of memory"):
        workspace_of(MemoryBudget(8 * UPDATE - 1, 2), collecting)


def far_apart(number: int) -> bytes:
    """Values of which those of no two updates add up to one number of binary64."""
    return np.full(10 * MIB, (1.1e9, 1.1e-3, 1.1e-27)[number], "<f4").tobytes()


def test_sums_that_grow_are_lent_as_much_as_they_take_and_no_more_than_there_is() -> None:
    memory = MemoryBudget(SUMS + 2 * UPDATE + 100 * MIB, 2)
    workspace = workspace_of(memory, context())
    add_whole(workspace.rule, LARGE, far_apart(0), 1)
    assert workspace.grown == 0
    add_whole(workspace.rule, LARGE, far_apart(1), 1)
    assert 77 * MIB <= workspace.grown <= 80 * MIB
    with pytest.raises(Unavailable, match=r"so far apart.*memory_megabytes") as refusal:
        add_whole(workspace.rule, LARGE, far_apart(2), 1)
    assert refusal.value.reason == pb.REASON_TOO_MUCH
    memory.give_back(workspace)
    assert workspace.grown == 0
    again = workspace_of(memory, context())
    for number in range(2):
        add_whole(again.rule, LARGE, far_apart(number), 1)
    memory.give_back(again)


def test_a_round_gets_memory_as_if_no_sums_had_grown_and_ends_those_that_are_in_its_way() -> None:
    """Else whoever asks for memory would read off the answers how far the sums of an open round have grown."""
    memory = MemoryBudget(SUMS + 2 * UPDATE + 140 * MIB, 2)
    workspace, ended = workspace_of(memory, context()), []
    workspace.end = lambda: ended.append(workspace)
    for number in range(2):
        add_whole(workspace.rule, LARGE, far_apart(number), 1)
    other = workspace_of(memory, context(owners=1))
    assert ended == [workspace]
    with pytest.raises(Unavailable, match="so far apart"):
        add_whole(workspace.rule, LARGE, far_apart(2), 1)
    memory.give_back(workspace)
    memory.give_back(other)
    assert memory._free == SUMS + 2 * UPDATE + 140 * MIB


def test_a_round_that_fits_beside_sums_that_have_grown_ends_none() -> None:
    memory = MemoryBudget(2 * (SUMS + 2 * UPDATE) + 80 * MIB, 2)
    workspace, ended = workspace_of(memory, context()), []
    workspace.end = lambda: ended.append(workspace)
    for number in range(2):
        add_whole(workspace.rule, LARGE, far_apart(number), 1)
    workspace_of(memory, context())
    assert ended == []


def test_sums_that_grow_take_the_memory_that_is_kept_for_later() -> None:
    memory = MemoryBudget(SUMS + 2 * UPDATE + 100 * MIB, 2)
    other = workspace_of(memory, context(Schema.of([TensorSpec("u", "F32", (5 * MIB,))]), owners=1))
    memory.give_back(other)
    workspace = workspace_of(memory, context())
    for number in range(2):
        add_whole(workspace.rule, LARGE, far_apart(number), 1)
    memory.give_back(workspace)
    assert memory._kept == [workspace]


def test_one_coordinator_does_not_hold_the_memory_that_another_waits_for() -> None:
    """As its rounds end it begins no others beyond its share, until the one that waits has had its own."""
    memory = MemoryBudget(4 * (SUMS + UPDATE), 1)
    greedy = [workspace_of(memory, context(), "greedy") for _ in range(4)]
    with pytest.raises(Unavailable):
        workspace_of(memory, context(), "patient")
    memory.give_back(greedy.pop())
    with pytest.raises(Unavailable, match="another coordinator"):
        workspace_of(memory, context(), "greedy")
    first = workspace_of(memory, context(), "patient")
    memory.give_back(greedy.pop())
    workspace_of(memory, context(), "greedy")  # nobody waits any more
    with pytest.raises(Unavailable):
        workspace_of(memory, context(), "patient")
    memory.give_back(first)
    workspace_of(memory, context(), "patient")


def test_the_buffers_have_the_size_in_which_updates_travel() -> None:
    by_encoding = {
        encoding: workspace_of(MemoryBudget(ALWAYS, 2), context(encoding=encoding)).buffers.nbytes
        for encoding in (pb.ENCODING_WHOLE, pb.ENCODING_BF16_DELTAS, pb.ENCODING_INT8_DELTAS)
    }
    scales = 4 * 10 * MIB // 256
    assert list(by_encoding.values()) == [UPDATE, UPDATE // 2, UPDATE // 4 + scales]


def test_a_round_that_can_never_fit_is_refused_for_good_and_says_what_to_change() -> None:
    memory = MemoryBudget(SUMS + 2 * UPDATE - 1, 2)
    with pytest.raises(
        LimitExceeded, match=r"171 MB.*2 updates at a time.*171 MB.*memory_megabytes"
    ):
        workspace_of(memory, context())
    workspace = workspace_of(MemoryBudget(SUMS + 2 * UPDATE, 2), context())
    assert workspace.nbytes == SUMS + 2 * UPDATE
    assert (
        workspace_of(memory, context(owners=1)).buffers.count == 1
    )  # nothing was taken by the refusal


def test_a_round_for_which_others_have_the_memory_has_to_wait_and_then_fits() -> None:
    memory = MemoryBudget(2 * (SUMS + 2 * UPDATE), 2)
    first, _second = workspace_of(memory, context()), workspace_of(memory, context())
    with pytest.raises(Unavailable, match="lent to other rounds") as refusal:
        workspace_of(memory, context())
    assert refusal.value.reason == pb.REASON_TOO_MUCH
    memory.give_back(first)
    third = workspace_of(memory, context())
    with pytest.raises(Unavailable):
        workspace_of(memory, context())
    memory.give_back(third)
    workspace_of(memory, context())


def test_what_the_system_refuses_is_not_lent() -> None:
    """Else a few such refusals would leave an aggregator that takes no round until it is restarted."""
    memory = MemoryBudget(SUMS + 2 * UPDATE, 2)
    full = mock.patch(
        "aggregator_node.aggregation.workspace.BufferPool", side_effect=OSError("cannot allocate")
    )
    with full, pytest.raises(Unavailable) as refusal:
        workspace_of(memory, context())
    assert refusal.value.reason == pb.REASON_TOO_MUCH
    assert workspace_of(memory, context()).nbytes == SUMS + 2 * UPDATE


def test_the_memory_of_a_round_serves_the_next_of_its_kind() -> None:
    memory = MemoryBudget(ALWAYS, 2)
    first = workspace_of(memory, context(owners=3))
    memory.give_back(first)
    assert workspace_of(memory, context(owners=16)) is first
    other = workspace_of(memory, context())
    assert other is not first
    memory.give_back(first)
    memory.give_back(other)
    assert {id(workspace_of(memory, context())), id(workspace_of(memory, context()))} == {
        id(first),
        id(other),
    }


def test_another_kind_of_round_gets_memory_of_its_own() -> None:
    memory = MemoryBudget(ALWAYS, 2)
    kept = workspace_of(memory, context())
    memory.give_back(kept)
    renamed = Schema.of([TensorSpec("u", "F32", (10 * MIB,))])
    transposed = Schema.of([TensorSpec("t", "F32", (MIB, 10))])
    for kind in (
        context(renamed),
        context(transposed),
        context(encoding=pb.ENCODING_INT8_DELTAS),
        context(owners=1),
        context(phase=pb.PHASE_EVALUATE),
    ):
        assert workspace_of(memory, kind) is not kept
    assert workspace_of(memory, context()) is kept


def test_what_is_kept_gives_way_to_a_round_that_needs_the_memory() -> None:
    memory = MemoryBudget(SUMS + 2 * UPDATE, 2)
    kept = workspace_of(memory, context())
    memory.give_back(kept)
    other = workspace_of(memory, context(Schema.of([TensorSpec("u", "F32", (10 * MIB,))])))
    memory.give_back(other)
    assert workspace_of(memory, context()) is not kept
    assert memory._kept == []


def test_the_sums_and_buffers_of_a_round_that_is_over_are_zeroed() -> None:
    memory = MemoryBudget(ALWAYS, 2)
    schema = Schema.of([TensorSpec("t", "F32", (1000,)), TensorSpec("n", "I64", (10,))])
    workspace = workspace_of(memory, context(schema, owners=2))
    update = np.full(1000, 0.375, "<f4")
    payload = np.full(10, 7, "<i8").tobytes() + update.tobytes()
    add_whole(workspace.rule, schema, payload, 1)
    with lent_buffers(workspace, 2) as lent:
        for buffer in lent:
            buffer[:] = payload
    memory.give_back(workspace)
    assert [bytes(buffer) for buffer in lent] == [bytes(len(payload))] * 2
    assert isinstance(workspace.rule, Mean)
    assert workspace.rule._memory[:] == bytes(8 * 1000 + 24 * 10)


def test_no_more_than_a_few_workspaces_are_kept() -> None:
    """Each has a few megabytes besides its sums and buffers, and a coordinator may have many jobs."""
    memory = MemoryBudget(1 << 40, 2)
    workspaces = []
    for number in range(10):
        kind = Schema.of([TensorSpec(f"t{number}", "F32", (4,))])
        workspaces.append(workspace_of(memory, context(kind)))
    alive = [weakref.ref(workspace) for workspace in workspaces]
    while workspaces:
        memory.give_back(workspaces.pop())
    gc.collect()
    assert sum(kept() is not None for kept in alive) == 4


def test_memory_to_which_a_push_still_writes_is_never_lent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the last bytes of a push that was cancelled would be in another owner's update."""
    monkeypatch.setattr("aggregator_node.aggregation.buffers._RETURN_SECONDS", 0)
    memory = MemoryBudget(SUMS + 2 * UPDATE, 2)
    workspace = workspace_of(memory, context())
    with lent_buffers(workspace, 1) as (late,):
        memory.give_back(workspace)
        fresh = workspace_of(memory, context())
        assert fresh is not workspace
        with lent_buffers(fresh, 2) as lent:
            late[:] = b"\x55" * UPDATE
            assert all(buffer[0] == buffer[-1] == 0 for buffer in lent)
    memory.give_back(fresh)
    assert workspace_of(memory, context()) is fresh


def test_an_update_that_is_being_added_when_its_round_is_aborted_is_in_no_other_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The abort does not wait for it: its add may end just after the sums were zeroed."""
    monkeypatch.setattr("aggregator_node.aggregation.buffers._RETURN_SECONDS", 0)
    memory = MemoryBudget(ALWAYS, 2)
    schema = Schema.of([TensorSpec("t", "F32", (4,))])
    workspace = workspace_of(memory, context(schema))
    zero = workspace.rule.reset
    with ExitStack() as push:
        push.enter_context(workspace.buffers.borrow("alice", lambda: False))

        def reset() -> None:
            zero()
            add_whole(workspace.rule, schema, np.full(4, 1000, "<f4").tobytes(), 1)
            push.close()  # the push is over, and its buffer free

        with mock.patch.object(workspace.rule, "reset", reset):
            memory.give_back(workspace)
        push.close()
    following = workspace_of(memory, context(schema))
    add_whole(following.rule, schema, np.full(4, 2, "<f4").tobytes(), 1)
    assert b"".join(following.rule.result_blocks()) == np.full(4, 2, "<f4").tobytes()


def test_an_evaluation_takes_no_memory() -> None:
    memory = MemoryBudget(SUMS + 2 * UPDATE, 2)
    workspace_of(memory, context())
    for _ in range(3):
        evaluation = workspace_of(memory, context(phase=pb.PHASE_EVALUATE))
        assert (evaluation.nbytes, evaluation.buffers.nbytes) == (0, 0)
        with lent_buffers(evaluation, 4) as lent:
            assert lent == [b""] * 4
        memory.give_back(evaluation)


EVALUATES = f"""
import re, sys
from pathlib import Path
from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.workspace import MemoryBudget
from cairn.v1 import round_pb2 as pb
from tests.unit.aggregator_node.aggregation.test_workspace import context, workspace_of
from tests.unit.aggregator_node.aggregation.whole import add_whole

def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) << 10

memory = MemoryBudget({ALWAYS}, 2)
before = peak()
evaluation = workspace_of(memory, context(phase=pb.PHASE_EVALUATE))
memory.give_back(evaluation)
print(peak() - before)
"""


def test_the_memory_that_an_evaluation_does_not_take_is_not_touched_either() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVALUATES], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    assert int(done.stdout) < 16 * MIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "text", [f"{1 << 20}\n", "max\n", f"{1 << 60}\n", "9223372036854771712\n", None]
)
def test_the_memory_of_a_container_is_its_limit_where_that_is_the_smaller(
    tmp_path: Path, text: str | None, version: int
) -> None:
    files = {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": tmp_path / "1",
        "/sys/fs/cgroup/memory.max": tmp_path / "2",
    }
    if text is not None:
        (tmp_path / str(version)).write_text(text)
    with mock.patch("aggregator_node.aggregation.workspace.Path", side_effect=files.__getitem__):
        found = memory_of_this_machine()
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    machine = int(meminfo.split()[1]) << 10  # its first line is MemTotal
    assert found == (1 << 20 if text == f"{1 << 20}\n" else machine)
