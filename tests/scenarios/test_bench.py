"""The benchmark: what it prints, that it notices a wrong model, and that nothing outlives it."""

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bench import report, rule_rounds
from bench.failure import BenchFailed
from bench.federated import Rounds, run_federation
from bench.proc import started_at, with_descendants
from bench.processes import Processes
from bench.report import write_section
from bench.work import NOISE, Work, check_model, write_work
from cairn.protocol.words import RULES
from tests.scenarios.processes import ROOT, is_alive, until

POSITIVE = (
    "seconds_per_round",
    "wall_seconds_per_round",
    "first_round_seconds",
    "limit_seconds",
    "limit_tcp_seconds",
    "limit_grpc_seconds",
    "ratio",
    "grpc_ratio",
    "wall_ratio",
    "cpu_seconds_per_round",
    "cpu_seconds_per_gb",
    "aggregator_peak_rss_mb",
    "total_peak_rss_mb",
)


def bench(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_round_is_measured_as_one_object_and_its_model_is_the_mean(tmp_path: Path) -> None:
    home = tmp_path / "run"
    size = ["--megabytes", "1", "--owners", "2", "--rounds", "1"]
    figures = json.loads(bench("round", *size, "--json", "--directory", home))

    assert (figures["megabytes"], figures["owners"], figures["rounds"]) == (1, 2, 1)
    assert figures["bytes_per_round"] == (2 + 2 + 1) * 10**6
    assert all(figures[key] > 0 for key in POSITIVE), figures
    assert figures["total_peak_rss_mb"] > figures["aggregator_peak_rss_mb"]

    before = load_file(home / "initial.safetensors")
    after = load_file(home / "out" / "model.safetensors")
    # Owner 1 adds 1 and owner 2 adds 2, in a round to warm up, one that is timed and one more.
    before["0"][0] += np.float32(3 * (1 + 2) / 2)
    assert sum(values.nbytes for values in after.values()) == 10**6
    assert sorted(after) == sorted(before)
    for name, values in before.items():
        assert after[name].tobytes() == values.tobytes(), name


def expected_model(home: Path, weighting: str) -> dict[str, np.ndarray]:
    """The files of a run of three owners, and the model after its three rounds."""
    write_work(home, Work(1, 3, 1, weighting))
    model = load_file(home / "initial.safetensors")
    added = {"equal": (1 + 2 + 3) / 3, "examples": (1 + 4 + 9) / (1 + 2 + 3)}[weighting]
    for _ in range(3):
        model["0"][0] = np.float32(np.float64(model["0"][0]) + added)
    return model


@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_the_mean_after_every_round_passes_the_check(tmp_path: Path, weighting: str) -> None:
    save_file(expected_model(tmp_path, weighting), tmp_path / "model.safetensors")
    check_model(tmp_path / "model.safetensors", Work(1, 3, 1, weighting))


@pytest.mark.parametrize(("tensor", "element"), [("0", 0), ("0", 1), ("3", -1)])
def test_a_model_that_differs_in_one_bit_fails(tmp_path: Path, tensor: str, element: int) -> None:
    model = expected_model(tmp_path, "equal")
    model[tensor].view(np.uint32)[element] ^= 1
    save_file(model, tmp_path / "model.safetensors")
    with pytest.raises(BenchFailed, match="the model is wrong in the block at byte 0"):
        check_model(tmp_path / "model.safetensors", Work(1, 3, 1))


KRUM = Work(1, 3, 1, rule="multi_krum", rule_numbers={"byzantine": 0, "select": 3}, job=2)


def test_a_job_with_a_rule_ends_with_a_model_between_the_updates_which_differ_by_noise(
    tmp_path: Path,
) -> None:
    """Multi-Krum of all owners is their mean."""
    rounds = run_federation(tmp_path, KRUM)
    assert len(rounds.seconds) == 1
    assert rounds.cpu_seconds > 0
    assert rounds.peak_bytes["aggregator"] > KRUM.model_bytes
    before = load_file(tmp_path / "initial.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    noises = [np.fromfile(tmp_path / f"{name}.noise", np.float32) for name in KRUM.names]
    assert np.std(noises) == pytest.approx(NOISE, rel=0.01)
    for name, values in before.items():
        moved = KRUM.all_rounds * np.mean(noises, axis=0)[: len(values)]
        np.testing.assert_allclose(after[name], values + moved, atol=1e-6)


def test_a_model_that_is_not_between_the_updates_fails(tmp_path: Path) -> None:
    """One update alone, in each round, is between; but one element beyond all of them is not."""
    write_work(tmp_path, KRUM)
    model = load_file(tmp_path / "initial.safetensors")
    noise = np.fromfile(tmp_path / "owner01.noise", np.float32)
    model["0"] += KRUM.all_rounds * noise[: len(model["0"])]
    save_file(model, tmp_path / "model.safetensors")
    check_model(tmp_path / "model.safetensors", KRUM)
    model["0"][7] += KRUM.all_rounds * 10 * NOISE
    save_file(model, tmp_path / "model.safetensors")
    with pytest.raises(BenchFailed, match="not between the updates"):
        check_model(tmp_path / "model.safetensors", KRUM)


def test_rounds_of_every_rule_but_the_sum_take_turns_and_are_held_against_the_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: list[Work] = []

    def timed(_nodes: object, _home: object, _commands: object, work: Work) -> Rounds:
        jobs.append(work)
        seconds = (1.0, 2.0) if work.rule == "mean" else (3.0, 4.0)
        return Rounds(9.0, seconds, seconds, 2.0 * len(seconds), 0, {"aggregator": 3 * 10**6})

    monkeypatch.setattr(rule_rounds, "_run", timed)
    monkeypatch.setattr(rule_rounds, "federation", lambda *_: nullcontext((None, {})))
    figures = rule_rounds.measure_rule_rounds(1, 8)

    assert figures.keys() == RULES.keys() - {"sum"}
    rules = [work.rule for work in jobs]
    assert rules[len(figures) :] == rules[: len(figures)][::-1]
    assert len({work.job for work in jobs}) == len(jobs)
    for rule, each in figures.items():
        assert each["times_the_mean"] == (1.0 if rule == "mean" else round(3.5 / 1.5, 2))
        assert (each["cpu_times_the_mean"], each["models"]) == (1.0, 3.0)


def test_the_help_imports_no_torch() -> None:
    code = (
        "import sys, bench.cli\n"
        "try: bench.cli.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "round" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_a_process_that_fails_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("waits", [sys.executable, "-c", "import signal; signal.pause()"])
        processes.start("fails", [sys.executable, "-c", "print('no disk'); raise SystemExit(3)"])
        with pytest.raises(BenchFailed, match=r"(?s)fails ended with code 3.*no disk"):
            until(lambda: processes.has_ended("waits"), "it fails")


def test_no_process_outlives_a_measurement_that_is_cut_short(tmp_path: Path) -> None:
    # The child has a session of its own, and neither of them ends when it is asked to.
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = f"{stubborn} print('ready', flush=True); time.sleep(600)"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "child.wait()"
    )
    family: list[int] = []

    def cut_short() -> None:
        with Processes(tmp_path) as processes:
            processes.start("parent", [sys.executable, "-c", code])
            until(lambda: "ready" in processes.log("parent").read_text(), "the child is ready")
            family.extend(with_descendants(processes.pids()["parent"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert len(family) == 2
    until(lambda: not any(map(is_alive, family)), "both have ended")


def test_a_process_is_told_from_a_later_one_by_its_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = started_at(process.pid)
        process.communicate(b"\n")
    assert started.isdigit()
    assert started_at(process.pid) == ""


def test_a_section_of_the_report_is_replaced_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n")
    monkeypatch.setattr(report, "_README", readme)
    write_section("a", ["new"])
    lines = readme.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[-4:-1] == ["new", "", "<!-- a: end -->"]
    assert "old" not in lines
    assert lines[3].startswith(time.strftime("%Y-", time.gmtime()))
    with pytest.raises(BenchFailed, match="has no <!-- b: begin -->"):
        write_section("b", [])
