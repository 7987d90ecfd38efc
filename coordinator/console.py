"""Shows a person what happens in a job: a line a round, and at the end where the model is."""

from cairn.protocol.aggregation import Aggregation
from cairn.protocol.messages import JobSpec
from cairn.protocol.privacy import PrivacyBudget
from cairn.protocol.words import reason_word
from cairn.runtime.quoting import say
from coordinator import events
from coordinator.causes import BECAUSE
from coordinator.statistics import table_of

_NO_METRICS = (
    "its owners reported none in common, or an earlier release of the same base has metrics of other owners, or of"
    " weights that may have been capped, from which these could be subtracted"
)


def show(event: events.Event) -> None:
    """Print the event to stdout; the log goes to stderr."""
    for line in lines_of(event):
        say(line)


def lines_of(event: events.Event) -> list[str]:
    """What a person is told of it."""
    match event:
        case events.JobStarted():
            return _started(event)
        case events.ChoiceDoubted(sentence):
            return [f"Warning: {sentence}"]
        case events.OwnersAwaited():
            return [_awaited(event)]
        case events.RoundFinished():
            return [_finished_round(event)]
        case events.OwnerNotCounted(number, owner, reason):
            because = f": {BECAUSE[reason]}" if reason in BECAUSE else ""
            return [f"Round {number}: {owner} was not counted ({reason_word(reason)}){because}"]
        case events.OwnerRests(number, owner, back_in):
            return [
                f"Round {number}: {owner} was not counted again and again; it is left out until round {back_in}"
            ]
        case events.GroupPassedOver(number, group, needed):
            turn = f"it is the turn of group {group}, of which fewer than {needed.owners} attend{needed.because}; another takes it"
            return [f"Round {number}: {turn}"]
        case events.RoundAborted(step, reason):
            what = "" if step.trains else " evaluation"
            return [f"Round {step.round}{what}: no release ({reason_word(reason)})"]
        case events.MetricsMissing(number):
            return [f"Round {number}: no metrics of the training ({_NO_METRICS})"]
        case events.BestMetricMissing():
            return [_unjudged(event)]
        case _:
            return _ending(event)


def _ending(event: events.Ending) -> list[str]:
    match event:
        case events.StoppedEarly() | events.BudgetSpent():
            return [_ended_early(event)]
        case events.BestModelKept(model, best):
            return [f"Best model: {model} (round {best.round}, {best.metric} {best.value:.4f})"]
        case events.StatisticsReleased(file, report):
            return [*table_of(report), f"Finished. Statistics: {file}"]
        case events.JobFinished(model, digest):
            return [
                f"Finished. Model: {model}",
                f"BLAKE3: {digest.hex()}",
                f'Load it: safetensors.torch.load_file("{model}")',
            ]


def _started(event: events.JobStarted) -> list[str]:
    spec = event.spec
    rounds, owners = _count(spec.rounds, "round"), ", ".join(spec.owners)
    done = "added up" if spec.statistics is not None else "averaged"
    by = f"{done} by the aggregator at {event.aggregator}"
    lines = [f"Job {spec.name}: {rounds} of {owners} (at least {event.floor}), {by}"]
    if spec.aggregation != Aggregation():
        lines.append(f"What becomes of their updates: {spec.aggregation}")
    if (budget := PrivacyBudget.of(spec.aggregation)) is not None:
        lines.append(_allowed(spec, budget))
    if spec.groups:
        groups = "; ".join(f"{n}: {', '.join(g)}" for n, g in enumerate(spec.groups, 1))
        lines.append(f"Each round is of one of {len(spec.groups)} groups. {groups}")
    if event.released:
        lines.append(f"Going on after {_count(event.released, 'round')}")
    return lines


def _allowed(spec: JobSpec, budget: PrivacyBudget) -> str:
    most = budget.most_releases(spec.rounds)
    told = f"epsilon {budget.epsilon:g} of one owner (delta {budget.delta:g})"
    if not spec.groups:
        return f"The budget, {told}, allows {most} of the {_count(spec.rounds, 'round')}"
    return f"The budget, {told}, allows each group {most} of the {_count(spec.rounds, 'round')}"


def _awaited(event: events.OwnersAwaited) -> str:
    missing = ", ".join(sorted(set(event.owners) - set(event.present)))
    needed = event.needed
    enough = f"at least {needed.owners}{' of one group' if event.of_one_group else ''}"
    return (
        f"Waiting for {missing}, at most {event.seconds:g} s: {_count(len(event.present), 'owner')} of {enough}"
        f" so far{needed.because}"
    )


def _finished_round(event: events.RoundFinished) -> str:
    width = len(str(event.releases))
    group = f" of group {event.group}" if event.group else ""
    metrics = "".join(f"   {name} {value:.4f}" for name, value in sorted(event.metrics.items()))
    best = "   best so far" if event.is_best else ""
    privacy = ""
    if event.epsilon is not None and event.budget is not None:
        budget = event.budget
        of = f"{event.epsilon:.3g} of {budget.epsilon:g} (delta {budget.delta:g})"
        privacy = f"   epsilon {of}, unit: one owner"
    return (
        f"Round {event.release:>{width}}/{event.releases}   {event.contributors} owners{group}"
        f"{metrics}{privacy}   {event.seconds:.2f} s{best}"
    )


def _unjudged(event: events.BestMetricMissing) -> str:
    others = f"only {', '.join(event.others)}" if event.others else "and no other"
    return (
        f"Round {event.round}: its evaluation has no {event.metric}, {others}: this release cannot be the best. A metric"
        " is there if every owner's task reports it and every owner's file lists it"
    )


def _ended_early(event: events.StoppedEarly | events.BudgetSpent) -> str:
    if isinstance(event, events.BudgetSpent):
        return (
            f"The budget is spent after {event.released} of {_count(event.rounds, 'round')}: another would tell more of"
            f" one owner than epsilon {event.budget.epsilon:g} (delta {event.budget.delta:g})"
        )
    best = event.best
    least = f" by {event.min_delta:g} or more" if event.min_delta else ""
    return (
        f"Stopped early, after {event.released} of {event.rounds} rounds: in the last {_count(best.waited, 'round')},"
        f" {best.metric} was not {best.better} than {best.mark:.4f}{least}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
