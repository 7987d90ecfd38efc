"""The rounds of a job in one process, with the tasks, rules and optimizers of the real nodes."""

import tomllib
from pathlib import Path

import numpy as np

from aggregator_node.aggregation.rules import RULES
from aggregator_node.optimizers.step import step_of
from cairn.model.validation import SIGNIFICANT_BITS, runs_of
from cairn.protocol import words
from cairn.protocol.aggregation import NUMBERS, OPTIMIZER_NUMBERS, Aggregation, numbers_of
from cairn.tasks.loader import load_task
from cairn.tasks.runner import TaskRunner, first_model
from cairn.tasks.task import Round, Site

HERE = Path(__file__).parent
JOB = tomllib.loads((HERE / "job.toml").read_text(encoding="utf-8"))
TASK = load_task(str(HERE / "task.py"))
LARGEST_VALUE = 1e9  # above it, owners and the aggregator refuse a model


class Diverged(Exception):
    """The weights have left the range that nodes accept."""


def aggregation(rule="mean", rule_numbers=None, optimizer="none", optimizer_numbers=None):
    """What a job's file says by these words and numbers, with the defaults."""
    which, step = words.RULES[rule], words.OPTIMIZERS[optimizer]
    return Aggregation(
        rule=which,
        rule_numbers=numbers_of(NUMBERS[which], rule_numbers or {}, rule),
        optimizer=step,
        optimizer_numbers=numbers_of(OPTIMIZER_NUMBERS[step], optimizer_numbers or {}, optimizer),
    )


def owners(directory, names):
    return [TaskRunner(TASK, Site(name, directory / f"{name}.npz")) for name in names]


def trained(runners, aggregation, seed, rounds=JOB["rounds"], *, by_examples=False):
    """The schema of the model after so many rounds, and its bytes. Raises Diverged."""
    schema, model = first_model(TASK, seed)
    rule = RULES[aggregation.rule](schema, aggregation, JOB["floor"])
    step, state = step_of(schema, aggregation), None
    draw = np.random.default_rng(seed)
    for number in range(1, rounds + 1):
        updates = [updated(runner, schema, model, number) for runner in runners]
        if aggregation.draws:
            updates = [updates[place] for place in draw.permutation(len(updates))]
        rule.begin(lambda _: None, model)
        for update, examples in updates:
            rule.add_blocks(reading(schema, update), examples if by_examples else 1)
        pieces = rule.result_blocks()
        if step is None:
            model = joined(pieces)
        else:
            after = bytearray()
            model = joined(step.release_blocks(model, pieces, state, after.extend))
            state = after or None
        rule.reset()
        if not (np.abs(np.frombuffer(model, np.float32)) <= LARGEST_VALUE).all():
            raise Diverged(f"in round {number}")
    return schema, model


def accuracy(runners, schema, model):
    """On the held-out patients of all these owners."""
    this = Round(JOB["name"], JOB["rounds"], JOB["settings"])
    outcomes = [runner.evaluate(this, schema, bytearray(model)) for runner in runners]
    right = sum(outcome.metrics["accuracy"] * outcome.examples for outcome in outcomes)
    return right / sum(outcome.examples for outcome in outcomes)


def updated(runner, schema, model, number):
    update = bytearray(schema.total_bytes)
    this = Round(JOB["name"], number, JOB["settings"])
    outcome = runner.train(this, schema, bytearray(model), update)
    return update, outcome.examples


def reading(schema, payload):
    runs = list(runs_of(schema))

    def read(number, block):
        run = runs[number]
        return run.values(payload)[block], SIGNIFICANT_BITS[run.dtype]

    return read


def joined(pieces):
    return bytearray(b"".join(bytes(piece) for piece in pieces))
