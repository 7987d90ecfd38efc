"""Evaluations and trainings of one model that count other owners, in a federation of real processes."""

from collections.abc import Callable

from tests.scenarios.federation import TASK, Federation
from tests.scenarios.test_verify import verify

MakeFederation = Callable[..., Federation]

THREE = {"alice": 1.0, "bob": -0.3, "carol": 0.7}
EVALUATE = """
def evaluate(model, data, round):
    if (data.test / f"no-evaluation-{round.number}").exists():
        raise RuntimeError
    return {"accuracy": float((data.test / "value").read_text())}


task = cairn.Task(evaluate=evaluate, """


def test_an_owner_that_is_missing_in_an_evaluation_costs_metrics_and_never_the_job(
    federate: MakeFederation,
) -> None:
    """The second job starts from the model of the first, and finds its evaluation refused."""
    federation = federate(THREE, floor=2)
    task = TASK.replace("task = cairn.Task(", EVALUATE.lstrip())
    task = task.replace("examples=1)", "examples=1, test=site.data, test_examples=1)")
    (federation.home / "task.py").write_text(task)
    for owner in THREE:
        federation.edit(owner, 'metrics = ["value"]', 'metrics = ["value", "accuracy"]')
    absent = federation.home / "data/carol/no-evaluation-1"
    absent.touch()
    federation.aggregator()
    federation.owners()

    first = federation.coordinator(rounds=2, evaluate=True)
    assert first.ends() == 0, first.output()
    federation.check_model(*[list(THREE)] * 2)
    one, two = federation.history()
    assert (set(one["metrics"]), one["evaluation"]) == ({"value", "accuracy"}, "released")
    assert (set(two["metrics"]), two["evaluation"]) == ({"accuracy"}, "released")
    assert "Round 2: no metrics of the training (" in first.output()

    absent.unlink()
    federation.out = federation.home / "again"
    second = federation.coordinator(name="again", rounds=2, evaluate=True)
    assert second.ends() == 0, second.output()
    federation.check_model(*[list(THREE)] * 2)
    one, two = federation.history()
    assert (set(one["metrics"]), one["evaluation"]) == ({"value"}, "COHORT_DIFFERENCE")
    assert (set(two["metrics"]), two["evaluation"]) == ({"accuracy"}, "released")
    assert "Round 1 evaluation: no release (COHORT_DIFFERENCE)" in second.output()
    code, output = verify(federation, federation.out)
    assert code == 0, output
