"""What averages of groups tell together: the span of all that was released, by its rank.

A release is the vector of ones at its owners. What several tell together is what lies in their span. A vector in the
span that is zero for all but a few owners would be a sum over these few, and the worst has one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_node.admission import AdmissionPolicy, Opening, check_opening
from aggregator_node.rounds.disclosure import ReleaseOverlap
from aggregator_node.rounds.upload import RoundContext
from aggregator_node.storage.rows import Progress
from cairn.errors import CairnError
from cairn.protocol.cohorts import Groups
from cairn.protocol.messages import JobSpec
from cairn.v1 import round_pb2 as pb
from coordinator.groups import Sampling, group_count, groups_of
from tests.unit.aggregator_node.rounds.test_upload import CONTEXT
from tests.unit.aggregator_node.test_admission import JOB

OWNERS = tuple("abcdefgh")
FLOOR = 2
BASES = (b"b" * 32, b"c" * 32)
Draw = st.DrawFn


def tell_of_fewer_than(few: int, released: Sequence[Sequence[str]]) -> set[tuple[str, ...]]:
    """The sets of fewer owners of which the releases together tell a sum, whatever its factors.

    A vector of the span is zero outside of a set exactly where the rank falls when the set is cut off.
    """
    matrix = np.array([[owner in counted for owner in OWNERS] for counted in released], float)
    rank = np.linalg.matrix_rank(matrix)
    found = set()
    for size in range(1, few):
        for some in itertools.combinations(range(len(OWNERS)), size):
            if np.linalg.matrix_rank(np.delete(matrix, some, axis=1)) < rank:
                found.add(tuple(OWNERS[place] for place in some))
    return found


def test_the_rank_finds_an_owner_that_is_in_one_of_two_releases_and_in_three_that_overlap() -> None:
    """The positive control."""
    assert ("a",) in tell_of_fewer_than(2, ["abc", "bc"])
    assert ("c",) in tell_of_fewer_than(2, ["abcdef", "abc", "cdef"])
    assert tell_of_fewer_than(3, ["abc", "def", "abc"]) == set()


def job_of(groups: Groups) -> JobSpec:
    return replace(JOB, owners=OWNERS, floor=FLOOR, groups=groups)


divisions = st.builds(
    lambda seed, fraction: groups_of(OWNERS, group_count(len(OWNERS), fraction, FLOOR), seed, "j"),
    st.integers(0, 1 << 32),
    st.sampled_from([0.1, 0.25, 0.375, 0.5]),
)
# Which job's, which of its groups (or all owners), who drops out, and from which base.
rounds = st.tuples(
    st.integers(0, 2),
    st.integers(0, 4),
    st.sets(st.sampled_from(OWNERS)),
    st.sampled_from(BASES),
)
Asked = tuple[int, int, set[str], bytes]


@settings(max_examples=200, deadline=None)
@given(st.lists(divisions, min_size=3, max_size=3), st.lists(rounds, max_size=12))
def test_whatever_drops_out_comparable_releases_tell_of_no_fewer_than_the_floor(
    divided: list[Groups], sequence: list[Asked]
) -> None:
    """Three jobs, each with groups of its own, whose rounds are asked for by a coordinator with a plan."""
    for any_base in (False, True):
        released = run(divided, sequence, any_base=any_base)
        for base in BASES:
            compared = [who for who, at in released if any_base or at == base]
            if compared:
                assert tell_of_fewer_than(FLOOR, compared) == set()


def run(
    divided: list[Groups], sequence: list[Asked], *, any_base: bool
) -> list[tuple[list[str], bytes]]:
    """What an aggregator releases of the rounds that it is asked for, and from which base."""
    overlap, policy = ReleaseOverlap(any_base=any_base), AdmissionPolicy("clinics", OWNERS, FLOOR)
    released = []
    for number, (which, part, dropped, base) in enumerate(sequence, 1):
        job = job_of(divided[which])
        asked = [OWNERS, *job.groups][part % (1 + len(job.groups))]
        counted = [owner for owner in asked if owner not in dropped]
        manifest = replace(CONTEXT.manifest, base_digest=base, phase=pb.PHASE_TRAIN)
        context = RoundContext(manifest, job, CONTEXT.bounds)
        try:
            check_opening(policy, job, Progress(), Opening(1, pb.PHASE_TRAIN, tuple(counted), base))
            overlap.add(bytes([number]) * 32, context, counted, has_metrics=True)
        except CairnError:
            continue
        released.append((counted, base))
    return released


@settings(deadline=None)
@given(divisions, st.integers(0, 1 << 32), st.lists(st.booleans(), min_size=1, max_size=12))
def test_over_all_rounds_of_a_job_whole_groups_tell_of_no_fewer_than_a_group(
    groups: Groups, seed: int, taken: list[bool]
) -> None:
    """From whatever bases they start, and whichever groups are passed over: this is what groups are for."""
    sampling = Sampling(groups, seed, "j")
    released = [sampling.turns(number)[0 if first else -1] for number, first in enumerate(taken, 1)]
    assert tell_of_fewer_than(min(map(len, groups)), released) == set()


def test_without_groups_cohorts_that_change_tell_of_one_owner_after_a_few_rounds() -> None:
    """As So et al. (arXiv 2106.03328) have it: samples that overlap, each of half of the owners."""
    samples = ["abcd", "efgh", "abef", "bcde", "acfg", "defh", "abch", "begh"]
    assert tell_of_fewer_than(2, samples) >= {(owner,) for owner in "cdgh"}
