"""A slice of the fuzzing that `make fuzz` does for longer."""

from pathlib import Path
from random import Random

import grpc
from google.protobuf.message import DecodeError

from cairn.v1 import round_pb2 as pb
from tests.hostile.fuzz import FORBIDDEN, METHODS, Findings, Watched, fuzz
from tests.hostile.mutation import mutated
from tests.scenarios.processes import Node


def test_spoilt_messages_break_nothing(tmp_path: Path) -> None:
    findings = fuzz(tmp_path, seed=20, seconds=5)
    assert not findings.faults, findings.table()
    reached = {path for path, _ in findings.answers}
    assert reached == set(METHODS)
    assert {path for path, code in findings.answers if code == "OK"} >= {
        path for path in METHODS if not path.endswith("/Watch")
    }
    assert not {code for _, code in findings.answers} & {code.name for code in FORBIDDEN}


def test_a_mutation_is_the_same_for_the_same_seed_and_mostly_another_message() -> None:
    message = pb.JobSpec(name="job", owners=["alice", "bob"], settings={"lr": 0.1}, floor=3)
    good = message.SerializeToString()
    first = [mutated(Random(seed), message, [good]) for seed in range(1000)]
    assert first == [mutated(Random(seed), message, [good]) for seed in range(1000)]
    assert len(set(first) - {good}) > 500
    assert message.SerializeToString() == good
    assert 0.1 < sum(map(_is_a_message, first)) / 1000 < 1  # so that both kinds are tried


def _is_a_message(raw: bytes) -> bool:
    try:
        pb.JobSpec.FromString(raw)
    except DecodeError:
        return False
    return True


def test_a_node_that_ended_is_a_finding(tmp_path: Path) -> None:
    node = Node("sleeper", tmp_path / "log", "sleep", "100")
    watched = Watched(node)
    assert not list(watched.faults())
    node.log.write_text("Traceback (most recent call last)")
    (fault,) = watched.faults()
    assert "sleeper printed Traceback" in fault
    assert not list(watched.faults())  # told once
    node.kill()
    assert list(watched.faults()) == ["sleeper ended with -9"]


def test_the_table_tells_each_methods_answers_and_what_went_wrong() -> None:
    findings = Findings(seed=7)
    findings.note("/cairn.v1.IntakeService/JoinRound", grpc.StatusCode.OK)
    findings.note("/cairn.v1.IntakeService/JoinRound", grpc.StatusCode.OK)
    findings.fault("the node fell over")
    table = findings.table().splitlines()
    assert table[0] == "seed 7: 2 calls"
    assert "/cairn.v1.IntakeService/JoinRound: OK=2" in table
    assert table[-1] == "FAULT the node fell over"
