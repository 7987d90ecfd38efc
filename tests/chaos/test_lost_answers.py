"""Every call may lose its request or its answer: to make it again changes nothing.

The relay counts what it has lost, so a method that no run calls fails its rows. New methods get rows by
themselves: these are made from the descriptors of the protocol.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import pytest

from tests.chaos.conftest import Faultless
from tests.chaos.invariants import check, entries_of, released_rounds
from tests.chaos.marking import OWNERS
from tests.chaos.relayed import RelayedStage
from tests.relay import END, FIRST, REQUEST, SECOND, SHAPES, places_of
from tests.scenarios.processes import until

UNUSED = {
    "/grpc.health.v1.Health/List",  # no node serves it, and the access table has no row for it
    "/grpc.health.v1.Health/Watch",
}
# As which it counts, by what it says.
KINDS_OF = {"JoinRound": ("JoinRound accept", "JoinRound renew", "JoinRound decline")}
UNSEEN = {("WatchRound", END)}  # after the round's end the coordinator listens no more
PLACES = {
    kind: [place for place in places_of(method) if (kind, place) not in UNSEEN]
    for method in sorted(SHAPES.keys() - UNUSED)
    for name in [method.rpartition("/")[2]]
    for kind in KINDS_OF.get(name, (name,))
}


@dataclass(frozen=True)
class Scene:
    """What must happen so that a kind of call is made at all."""

    before: Mapping[str, Sequence[str]] = field(default_factory=dict)
    holds: Mapping[str, str] = field(default_factory=dict)
    bob_fails: bool = False
    is_stopped: bool = False


SCENES = {
    "GetReceipt": Scene(before={"SubmitUpdate": [FIRST]}),
    "JoinRound renew": Scene(holds={"FetchModel": "JoinRound renew"}),
    "JoinRound decline": Scene(bob_fails=True),
    "AbortRound": Scene(holds={"SubmitUpdate": "AbortRound"}, is_stopped=True),
}
# What the default run has one by one, beside the runs that lose something of every other method.
ALWAYS = {
    ("JoinRound decline", REQUEST),
    ("JoinRound decline", FIRST),
    ("AbortRound", REQUEST),
    ("AbortRound", FIRST),
}
CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
CASES = [
    pytest.param(
        kind,
        place,
        code,
        marks=[] if (kind, place) in ALWAYS and code is CODES[0] else pytest.mark.chaos,
        id=f"{kind}-{place}-{code.name}",
    )
    for kind, places in PLACES.items()
    for place in places
    for code in CODES
]


# Of one job in which no owner declines and no round is aborted.
TOGETHER = {
    kind: places
    for kind, places in PLACES.items()
    if kind not in {"JoinRound decline", "AbortRound"}
}
EVERYWHERE: dict[str, dict[str, list[str]]] = {
    "the first request": {kind: [REQUEST] for kind in TOGETHER},
    "the first answer": {kind: [FIRST] for kind in TOGETHER},
    "three answers in a row": {kind: [FIRST] * 3 for kind in TOGETHER},
    "at every place": TOGETHER,
}


@pytest.fixture(scope="module")
def relayed_stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RelayedStage]]:
    made = [RelayedStage(tmp_path_factory.mktemp("lost"))]
    yield made
    for stage in made:
        stage.close()


@pytest.fixture
def relayed(
    relayed_stages: list[RelayedStage], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RelayedStage]:
    if relayed_stages[-1].is_broken:
        relayed_stages[-1].close()
        relayed_stages.append(RelayedStage(tmp_path_factory.mktemp("lost")))
    stage = relayed_stages[-1]
    yield stage
    stage.losses.plan({})
    stage.set_mode("bob", "good")


def play(
    stage: RelayedStage,
    losses: Mapping[str, Sequence[str]],
    scene: Scene,
    code: grpc.StatusCode = CODES[0],
) -> None:
    """Run a job to its end through the losses."""
    stage.losses.plan({**scene.before, **losses}, code=code, holds=scene.holds)
    if scene.bob_fails:
        stage.set_mode("bob", "raise")
    stage.begin()
    if scene.is_stopped:
        until(lambda: stage.losses.held or stage.tend(), "an owner pushes")
        stage.running["coordinator"].send(signal.SIGTERM)
    stage.run_to_end()


def check_losses(stage: RelayedStage, losses: Mapping[str, Sequence[str]]) -> None:
    """All that was to be lost was lost, and no node has ended for it or failed otherwise."""
    asked = {(kind, place) for kind, places in losses.items() for place in places}
    assert stage.losses.held_in_vain == 0
    # The job may have ended a moment before its owners' streams did.
    until(lambda: asked <= stage.losses.lost.keys(), f"all of {asked} is lost")
    for node in ("aggregator", "coordinator", *OWNERS):
        traces = stage.output_of(node).count("Traceback")
        assert traces == stage.output_of(node).count("RuntimeError: the data"), node


def check_everybody_knows(stage: RelayedStage) -> None:
    """Every owner learns of each round that was released whether its own update is in it."""
    for number, counted in released_rounds(stage).items():
        for owner in OWNERS:
            if owner not in counted:
                continue

            def knows(owner: str = owner, number: int = number) -> bool:
                found = entries_of(stage, owner, "released")
                return any(e.facts["round"] == number and e.facts["counted"] for e in found)

            until(knows, f"{owner} knows that it was counted in round {number}")


def play_and_check(
    kind: str,
    places: list[str],
    code: grpc.StatusCode,
    stage: RelayedStage,
    faultless: Faultless,
) -> None:
    scene, losses = SCENES.get(kind, Scene()), {kind: places}
    with stage.explained():
        play(stage, losses, scene, code)
        check_losses(stage, losses)
        check(stage, faultless.model)
        check_everybody_knows(stage)
        counted = frozenset(OWNERS) - ({"bob"} if scene.bob_fails else frozenset())
        # A round that was aborted has burnt its number.
        numbers = (2, 3) if scene.is_stopped else (1, 2)
        assert released_rounds(stage) == dict.fromkeys(numbers, counted)
        assert stage.restarts == ([("coordinator", 1)] if scene.is_stopped else [])
        why = [entry.facts.get("reason") for entry in entries_of(stage, "bob", "released")]
        assert why == [("NOT_COUNTED" if scene.bob_fails else None)] * len(numbers)


@pytest.mark.parametrize(("kind", "place", "code"), CASES)
def test_a_call_that_is_lost_is_made_again_and_changes_nothing(
    kind: str,
    place: str,
    code: grpc.StatusCode,
    relayed: RelayedStage,
    faultless: Faultless,
) -> None:
    play_and_check(kind, [place], code, relayed, faultless)


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(losses, id=name, marks=[pytest.mark.chaos] if losses is TOGETHER else [])
        for name, losses in EVERYWHERE.items()
    ],
)
def test_every_caller_loses_calls_of_every_method_in_one_job(
    losses: dict[str, list[str]], relayed: RelayedStage, faultless: Faultless
) -> None:
    scene = Scene(before={"SubmitUpdate": [FIRST]}, holds=SCENES["JoinRound renew"].holds)
    with relayed.explained():
        play(relayed, losses, scene)
        check_losses(relayed, losses)
        assert relayed.restarts == []
        check(relayed, faultless.model)
        check_everybody_knows(relayed)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", PLACES)
def test_three_answers_in_a_row_of_one_method_are_lost(
    kind: str, relayed: RelayedStage, faultless: Faultless
) -> None:
    play_and_check(kind, [FIRST] * 3, CODES[0], relayed, faultless)


def test_owners_that_miss_the_last_outcome_learn_by_themselves_that_they_were_counted(
    relayed: RelayedStage, faultless: Faultless
) -> None:
    """No invitation follows, at which they would have asked."""
    losses = {"Attend": [SECOND, SECOND]}  # on each stream an invitation comes through, and no more
    with relayed.explained():
        play(relayed, losses, Scene())
        check_losses(relayed, losses)
        check(relayed, faultless.model)
        check_everybody_knows(relayed)
