"""The examples as a person runs them: `cairn demo`, real processes, and weights that can be predicted."""

import json
import signal
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from torch import nn, optim

from cairn.identity.signing_keys import parse_signing_key_text
from cairn.protocol.statements import from_envelope, verified_statement
from tests.scenarios.processes import ColdNode, Node, descendants_of, is_alive, until
from tests.scenarios.tutorial import State, plain_loop, rows_of
from tests.warm.start import BIN


def demo(
    directory: Path, out: Path, name: str, *options: str | Path, kind: type[Node] = Node
) -> Node:
    log = directory / f"{out.name}.log"
    return kind("demo", log, BIN / "cairn", "demo", name, "--out", out, *options)


def some_model(seed: int, scale: float) -> State:
    torch.manual_seed(seed)
    state = nn.Linear(2, 1).state_dict()
    return {name: tensor * scale for name, tensor in state.items()}


def same_bits(model: State, expected: State) -> bool:
    return all(
        model[name].numpy().tobytes() == tensor.numpy().tobytes()
        for name, tensor in expected.items()
    )


def test_the_tutorial_ends_with_the_weights_of_a_plain_loop_bit_by_bit_and_every_time(
    tmp_path: Path,
) -> None:
    initial, rounds = some_model(6, 100.0), 5
    save_file(initial, tmp_path / "initial.safetensors")
    options = ("--initial-model", tmp_path / "initial.safetensors", "--rounds", str(rounds))
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        assert demo(tmp_path, out, "tutorial", *options).ends() == 0
        assert same_bits(load_file(out / "model.safetensors"), plain_loop(initial, rounds))
        history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        assert [line["round"] for line in history] == list(range(1, rounds + 1))
        assert all(line["contributors"] == 2 for line in history)
    files = [(out / "model.safetensors").read_bytes() for out in outs]
    assert files[0] == files[1]


def test_the_tutorial_as_it_stands_learns_and_leaves_what_a_verifier_needs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = demo(tmp_path, out, "tutorial", kind=ColdNode)
    assert running.ends() == 0
    torch.manual_seed(1)
    assert same_bits(
        load_file(out / "model.safetensors"), plain_loop(nn.Linear(2, 1).state_dict(), 10)
    )
    lines = (out / "federation/coordinator.toml").read_text().splitlines()
    (pinned,) = [line for line in lines if line.startswith("aggregator_signing_key")]
    key = parse_signing_key_text(pinned.split('"')[1])
    statement = verified_statement(key, from_envelope((out / "release.json").read_text()))
    digest = blake3((out / "model.safetensors").read_bytes()).digest()
    assert statement.release_digest == digest
    assert (statement.round, statement.contributors) == (10, 2)
    assert f"BLAKE3: {digest.hex()}" in running.output()
    assert "predictions:" in running.output()
    assert "Traceback" not in running.output()
    assert "error" not in running.output()


def test_the_tutorials_gradients_go_on_as_sgd_on_everybodys_rows_does(tmp_path: Path) -> None:
    initial, out = some_model(6, 1.0), tmp_path / "out"
    save_file(initial, tmp_path / "initial.safetensors")
    options = ("--job", "gradients.toml", "--initial-model", tmp_path / "initial.safetensors")
    assert demo(tmp_path, out, "tutorial", *options).ends() == 0
    model = nn.Linear(2, 1)
    model.load_state_dict(initial)
    opt = optim.SGD(params=model.parameters(), lr=0.2, momentum=0.5)
    parts = [rows_of(owner) for owner in ("alice", "bob")]
    losses = []
    for _ in range(10):
        opt.zero_grad()
        loss = sum((((model(x) - y) ** 2).sum() for x, y in parts), torch.zeros(())) / len(parts)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    released = load_file(out / "model.safetensors")
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(released[name], expected, rtol=1e-5, atol=1e-5)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    # A metric in the history has 12 bits.
    assert [line["metrics"]["loss"] for line in history] == pytest.approx(losses, rel=1e-3)


def test_the_breast_cancer_job_reaches_an_accuracy_of_93_per_cent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert demo(tmp_path, out, "breast_cancer").ends() == 0
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert len(history) == 20
    assert all(line["contributors"] == 5 for line in history)
    assert history[-1]["metrics"]["accuracy"] >= 0.93
    assert json.loads((out / "evaluation.json").read_text())["statement"]["phase"] == "evaluate"


def test_the_adapters_job_releases_the_adapters_and_the_head_and_learns(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert demo(tmp_path, out, "adapters", "--rounds", "3").ends() == 0
    released = load_file(out / "model.safetensors")
    adapters = [f"{layer}.lora_{side}" for layer in ("first", "second") for side in "ab"]
    assert sorted(released) == sorted([*adapters, "head.bias", "head.weight"])
    assert all(released[f"{layer}.lora_b"].any() for layer in ("first", "second"))  # 0 at first
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["contributors"] for line in history] == [4, 4, 4]
    accuracies = [line["metrics"]["accuracy"] for line in history]
    assert accuracies == sorted(set(accuracies))


def test_the_digits_job_releases_no_norm_and_learns(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert demo(tmp_path, out, "digits", "--rounds", "3").ends() == 0
    released = load_file(out / "model.safetensors")
    assert sorted(released) == [
        "first.conv.weight",
        "head.bias",
        "head.weight",
        "second.conv.weight",
    ]
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["contributors"] for line in history] == [5, 5, 5]
    accuracies = [line["metrics"]["accuracy"] for line in history]
    assert accuracies == sorted(set(accuracies))
    assert accuracies[-1] > 0.8


def test_a_demo_that_is_interrupted_stops_all_it_started_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    initial, rounds = some_model(7, 1.0), 30
    save_file(initial, tmp_path / "initial.safetensors")
    options = ("--initial-model", tmp_path / "initial.safetensors", "--rounds", str(rounds))
    out = tmp_path / "out"
    first = demo(tmp_path, out, "tutorial", *options)
    history = out / "history.jsonl"
    until(lambda: history.exists() and len(history.read_bytes().splitlines()) >= 3, "3 rounds")
    started = descendants_of(first.pid)
    assert len(started) == 6  # the aggregator, two owners that train, and the coordinator
    first.send(signal.SIGINT)
    assert first.ends() == 130
    until(lambda: not any(map(is_alive, started)), "all processes are gone")
    assert f"The checkpoint is in {out}; the same command goes on from it" in first.output()
    assert "Traceback" not in first.output()
    assert len(history.read_bytes().splitlines()) < rounds
    second = demo(tmp_path, out, "tutorial", *options)
    assert second.ends() == 0
    assert "Going on after" in second.output()
    assert len(history.read_bytes().splitlines()) == rounds
    assert same_bits(load_file(out / "model.safetensors"), plain_loop(initial, rounds))
