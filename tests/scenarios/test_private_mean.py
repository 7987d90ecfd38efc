"""A private job in a federation of real processes."""

from collections.abc import Callable

import numpy as np
from safetensors.numpy import load_file

from tests.scenarios.federation import Federation
from tests.scenarios.test_owner_policy import of_kind
from tests.scenarios.test_verify import verify

MakeFederation = Callable[..., Federation]

NORM, NOISE = 0.01, 2.0
RULE = {
    "rule.name": "private_mean",
    "rule.norm": NORM,
    "rule.noise": NOISE,
    "rule.epsilon": 100,
    "rule.delta": 1e-5,
}


def test_a_private_job_releases_noised_models_and_no_metric_and_verifies(
    federate: MakeFederation,
) -> None:
    """Two owners pull the model by far more than the norm, one way, so that a release is all norm and noise."""
    federation = federate({"alice": 1.0, "bob": 0.9}, floor=2)
    federation.aggregator()
    owners = federation.owners()
    coordinator = federation.coordinator(rounds=2, **RULE)
    assert coordinator.ends() == 0, coordinator.output()

    model = load_file(federation.out / "model.safetensors")
    moved = np.concatenate([(model[n] - v.numpy()).ravel() for n, v in federation.initial.items()])
    assert (moved != 0).all()
    assert np.abs(moved).max() < 2 * NORM * (1 + 7 * NOISE / 2)  # a draw of seven sigma is none
    assert [line["metrics"] for line in federation.history()] == [{}, {}]
    output = coordinator.output()
    assert "private_mean (delta = 1e-05, epsilon = 100, noise = 2, norm = 0.01)" in output
    assert "no metrics" not in output  # they are not missing
    for name, owner in owners.items():
        sent = of_kind(federation, name, "sent")
        assert [(each["metrics"], each["dropped_metrics"]) for each in sent] == [
            ({}, ["value"])
        ] * 2
        assert not owner.events("metrics that this owner's file does not list are dropped")
    code, output = verify(federation, federation.out)
    assert code == 0, output


def test_a_private_job_that_would_be_evaluated_is_refused_in_a_sentence(
    federate: MakeFederation,
) -> None:
    federation = federate({"alice": 1.0, "bob": 0.9}, floor=2)
    coordinator = federation.coordinator(evaluate=True, **RULE)
    assert coordinator.ends() == 2
    assert "evaluate = true: a job by the rule private_mean has no metrics" in coordinator.output()
