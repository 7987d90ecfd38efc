"""A job that keeps its best release and stops early, in a federation of real processes."""

import json
from collections.abc import Callable

from blake3 import blake3
from safetensors.torch import load_file

from tests.scenarios.federation import TASK, Federation
from tests.scenarios.test_verify import verify

MakeFederation = Callable[..., Federation]

TWO = {"alice": 1.0, "bob": -0.3}
ACCURACIES = [0.25, 0.75, 0.5, 0.625, 0.875]
# Each owner is so far from these that only their average says which is the highest.
EVALUATE = f"""
def evaluate(model, data, round):
    apart = float((data.test / "value").read_text()) * 2 - 0.7
    return {{"accuracy": {ACCURACIES}[round.number - 1] + apart * (round.number % 2)}}


task = cairn.Task(evaluate=evaluate, """


def test_a_job_stops_early_and_its_best_model_is_the_release_with_the_best_average(
    federate: MakeFederation,
) -> None:
    federation = federate(TWO)
    task = TASK.replace("task = cairn.Task(", EVALUATE.lstrip())
    task = task.replace("examples=1)", "examples=1, test=site.data, test_examples=1)")
    (federation.home / "task.py").write_text(task)
    for owner in TWO:
        federation.edit(owner, 'metrics = ["value"]', 'metrics = ["value", "accuracy"]')
    federation.edit("aggregator", "floor = 2", "floor = 2\npatience_seconds = 600")
    aggregator = federation.aggregator("--once")
    federation.owners()
    best = {"best.metric": "accuracy", "best.better": "higher", "best.patience": 2}

    coordinator = federation.coordinator(rounds=9, evaluate=True, **best)
    assert coordinator.ends() == 0, coordinator.output()
    assert "Stopped early, after 4 of 9 rounds: in the last 2 rounds, " in coordinator.output()
    history = federation.history()
    assert [line["metrics"]["accuracy"] for line in history] == ACCURACIES[:4]
    assert [line["best"] for line in history] == [1, 2, 2, 2]

    federation.check_model(*[list(TWO)] * 4)
    model = load_file(federation.out / "best.safetensors")
    for name, values in federation.expected(*[list(TWO)] * 2).items():
        assert model[name].numpy().tobytes() == values.tobytes(), name
    digest = blake3((federation.out / "best.safetensors").read_bytes()).hexdigest()
    entries = (federation.out / "ledger.jsonl").read_text().splitlines()
    bodies = [json.loads(json.loads(entry)["body"]) for entry in entries]
    assert [
        (body["round"], body["phase"]) for body in bodies if body.get("release_digest") == digest
    ] == [(2, "train"), (2, "evaluate")]
    code, output = verify(federation, federation.out)
    assert code == 0, output
    assert "best.safetensors: it is the release of halving round 2" in output

    assert aggregator.ends() == 0  # it waits for none of the other rounds

    again = federation.coordinator(rounds=9, evaluate=True, **best)
    assert again.ends() == 0, again.output()
    assert len(federation.history()) == 4

    other = federation.coordinator(rounds=9, evaluate=True, **best | {"best.better": "lower"})
    assert other.ends() == 2
    assert 'best.metric = "accuracy" with better = "higher": write these again' in other.output()
