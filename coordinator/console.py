"""What the coordinator shows a person: a line a round, and at the end where the model is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.messages import JobSpec, reason_word
from cairn.quoting import say
from cairn.v1 import round_pb2 as pb
from coordinator.campaign import Step

_BECAUSE = {
    pb.REASON_NOT_COUNTED: "its task failed there or its update was refused; only that owner is told why",
    pb.REASON_FAILURES_SPENT: (
        "it was not counted as often as its file allows: its operator has to look into that and run `cairn reset`"
    ),
}


class Console:
    """Prints to stdout; the log goes to stderr."""

    def __init__(self, spec: JobSpec, aggregator: str) -> None:
        self._spec = spec
        self._aggregator = aggregator

    def started(self, floor: int, released: int) -> None:
        owners = ", ".join(self._spec.owners)
        say(
            f"Job {self._spec.name}: {_count(self._spec.rounds, 'round')} of {owners}"
            f" (at least {floor}), averaged by {self._aggregator}"
        )
        if self._spec.groups:
            groups = "; ".join(f"{n}: {', '.join(g)}" for n, g in enumerate(self._spec.groups, 1))
            say(f"Each round is of one of {len(self._spec.groups)} groups. {groups}")
        if released:
            say(f"Going on after {_count(released, 'round')}")

    def waiting(self, present: Sequence[str], floor: int, seconds: float) -> None:
        missing = ", ".join(sorted(set(self._spec.owners) - set(present)))
        enough = f"at least {floor}{' of one group' if self._spec.groups else ''}"
        say(
            f"Waiting for {missing}, at most {seconds:g} s: {_count(len(present), 'owner')} of {enough}"
            " so far"
        )

    def round(self, released: int, line: Mapping[str, Any]) -> None:
        width = len(str(self._spec.rounds))
        group = f" of group {line['group']}" if line["group"] else ""
        metrics = "".join(
            f"   {name} {value:.4f}" for name, value in sorted(line["metrics"].items())
        )
        say(
            f"Round {released:>{width}}/{self._spec.rounds}   {line['contributors']} owners{group}"
            f"{metrics}   {line['seconds']:.2f} s"
        )

    def passed_over(self, step: Step, groups: Sequence[int], floor: int) -> None:
        for group in groups:
            say(
                f"Round {step.round}: it is the turn of group {group}, of which fewer than {floor} attend;"
                " another takes it"
            )

    def excluded(self, step: Step, exclusions: Sequence[pb.Exclusion]) -> None:
        for exclusion in exclusions:
            because = _BECAUSE.get(exclusion.reason)
            say(
                f"Round {step.round}: {exclusion.owner} was not counted ({reason_word(exclusion.reason)})"
                f"{f': {because}' if because else ''}"
            )

    def resting(self, step: Step, resting: Mapping[str, int]) -> None:
        for owner, back_in in resting.items():
            say(
                f"Round {step.round}: {owner} was not counted again and again; it is left out until round"
                f" {back_in}"
            )

    def aborted(self, step: Step, reason: "pb.Reason") -> None:
        what = "" if step.trains else " evaluation"
        say(f"Round {step.round}{what}: no release ({reason_word(reason)})")

    def without_metrics(self, step: Step) -> None:
        say(
            f"Round {step.round}: no metrics of the training (its owners reported none in common, or an earlier"
            " release of the same base has metrics of other owners, or of weights that may have been capped, from"
            " which these could be subtracted)"
        )

    def finished(self, model: Path, digest: str) -> None:
        say(f"Finished. Model: {model}")
        say(f"BLAKE3: {digest}")
        say(f'Load it: safetensors.torch.load_file("{model}")')


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
