"""The rounds of an example's job in one process, with the tasks, rules and optimizers of the real nodes.

The scripts that compare (`compare.py` of an example) use it: what a federation reaches over many seeds takes
minutes in this way, and a process for each node would change no bit of it.
"""

import tomllib
from dataclasses import replace

import numpy as np

from aggregator_node.aggregation.rules import RULES
from aggregator_node.optimizers.step import step_of
from cairn.errors import UpdateRefused
from cairn.model.validation import SIGNIFICANT_BITS, Bounds, check_values, runs_of
from cairn.protocol import words
from cairn.protocol.aggregation import NUMBERS, OPTIMIZER_NUMBERS, Aggregation, numbers_of
from cairn.tasks.first_model import first_model, first_split
from cairn.tasks.kept import KeptValues
from cairn.tasks.loader import load_task
from cairn.tasks.runner import TaskRunner
from cairn.tasks.task import Round, Site


class Diverged(Exception):
    """The weights have left the range that nodes accept."""


def aggregation(
    rule="mean",
    rule_numbers=None,
    optimizer="none",
    optimizer_numbers=None,
    content="weights",
):
    """What a job's file says by these words and numbers, with the defaults."""
    which, step = words.RULES[rule], words.OPTIMIZERS[optimizer]
    return Aggregation(
        content=words.CONTENTS[content],
        rule=which,
        rule_numbers=numbers_of(NUMBERS[which], rule_numbers or {}, rule),
        optimizer=step,
        optimizer_numbers=numbers_of(OPTIMIZER_NUMBERS[step], optimizer_numbers or {}, optimizer),
    )


class Owner:
    """A task at a site, with what it keeps from round to round. Every round counts it."""

    def __init__(self, task, site):
        self.name = site.name
        self._runner = TaskRunner(task, site)
        keeps = first_split(task, 0).kept if task.keeps else {}
        self._kept = KeptValues.none_yet(keeps) if keeps else None

    def update(self, this, schema, model, *, gradients):
        """What leaves in this round, and for how many examples it stands."""
        update = bytearray(schema.total_bytes)
        work = self._runner.gradients if gradients else self._runner.train
        outcome = work(this, schema, bytearray(model), update, self._kept)
        if self._kept is not None:
            self._kept = replace(self._kept, are_there=True)
        return update, outcome.examples

    def evaluate(self, this, schema, model, *, gradients):
        model = bytearray(model)
        return self._runner.evaluate(this, schema, model, self._kept, gradients=gradients)


class Example:
    """A folder with a job's file and task.py; `task` takes the place of the one in task.py."""

    def __init__(self, folder, job="job.toml", task=None):
        self.job = tomllib.loads((folder / job).read_text(encoding="utf-8"))
        self.task = task or load_task(str(folder / "task.py"))
        self.gradients = self.job.get("content") == "gradients"

    def owners(self, directory, names=None, suffix="npz"):
        """The owners of these names, or all of the job's, each with its file of the directory."""
        return [
            Owner(self.task, Site(name, directory / f"{name}.{suffix}"))
            for name in names or self.job["owners"]
        ]

    def aggregation(self):
        """The mean, and the optimizer of the job's file."""
        numbers = dict(self.job.get("optimizer", {"name": "none"}))
        return aggregation(
            optimizer=numbers.pop("name"),
            optimizer_numbers=numbers,
            content=self.job.get("content", "weights"),
        )

    def trained(self, owners, aggregation=None, seed=1, rounds=None, *, by_examples=None):
        """The schema of the model after so many rounds, and its bytes. Raises Diverged."""
        aggregation = aggregation or self.aggregation()
        schema, model = first_model(self.task, seed, gradients=self.gradients)
        rule = RULES[aggregation.rule](schema, aggregation, self.job["floor"])
        step, state = step_of(schema, aggregation), None
        draw = np.random.default_rng(seed)
        for number in range(1, (rounds or self.job["rounds"]) + 1):
            updates = self._updates(owners, number, schema, model)
            if aggregation.draws:
                updates = [updates[place] for place in draw.permutation(len(updates))]
            rule.begin(lambda _: None, model)
            for update, examples in updates:
                rule.add_blocks(_reading(schema, update), self._weight(examples, by_examples))
            pieces = rule.result_blocks()
            if step is None:
                model = _joined(pieces)
            else:
                after = bytearray()
                model = _joined(step.release_blocks(model, pieces, state, after.extend))
                state = after or None
            rule.reset()
            try:
                check_values(schema, model, Bounds())
            except UpdateRefused as error:
                raise Diverged(f"in round {number}: {error}") from None
        return schema, model

    def alone(self, owner, seed=1):
        """The rounds of one owner: the mean of one update is that update."""
        return self.trained([owner], seed=seed)

    def measured(self, owners, schema, model, metric="accuracy"):
        """The metric on the held-out examples of all these owners, averaged as the aggregator does."""
        this = self._round(self.job["rounds"])
        outcomes = [
            owner.evaluate(this, schema, model, gradients=self.gradients) for owner in owners
        ]
        total = sum(outcome.metrics[metric] * outcome.examples for outcome in outcomes)
        return total / sum(outcome.examples for outcome in outcomes)

    def _updates(self, owners, number, schema, model):
        this = self._round(number)
        return [owner.update(this, schema, model, gradients=self.gradients) for owner in owners]

    def _round(self, number):
        return Round(self.job["name"], number, self.job["settings"])

    def _weight(self, examples, by_examples):
        """What an update counts; no owner has half of all examples here, so that no weight is capped."""
        if by_examples is None:
            by_examples = self.job["weighting"] == "examples"
        return examples if by_examples else 1


def cell(values):
    """The average of a table's cell over its seeds, with the lowest and the highest."""
    if any(np.isnan(values)):
        return "diverges"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _reading(schema, payload):
    runs = list(runs_of(schema))

    def read(number, block):
        run = runs[number]
        return run.values(payload)[block], SIGNIFICANT_BITS.get(run.dtype, 0)

    return read


def _joined(pieces):
    return bytearray(b"".join(bytes(piece) for piece in pieces))
