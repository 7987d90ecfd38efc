"""`cairn doctor` names every fault that lies on the node's own machine, and its cure."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cairn.identity.authority import (
    Authority,
    Subject,
    issue,
    new_authority,
    new_key,
    new_request,
    new_signing_key,
)
from cairn.identity.names import NodeName, Role
from cairn.ledger.chain import Ledger
from cairn.runtime.clock import Clock
from cairn.storage.database import StateDirectory
from cairn.storage.directory import OWNER_DATABASE
from tests.scenarios.processes import free_port
from tests.small_disk import may_mount, on_small_disk
from tests.unit.cairn.cli.examination import called, examined, made, pointed
from tests.warm.start import BIN

ROLES = {"alice": Role.OWNER, "coordinator": Role.COORDINATOR, "aggregator": Role.AGGREGATOR}
NODES = sorted(ROLES)


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    federation = made(tmp_path)
    for key in ("listen_owners", "listen_coordinators"):
        pointed(federation / "aggregator.toml", key, f"127.0.0.1:{free_port()}")
    pointed(federation / "coordinator.toml", "listen", f"127.0.0.1:{free_port()}")
    return federation


class At(Clock):
    """A clock that stands."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def unix_ms(self) -> int:
        return int(self._moment.timestamp() * 1000)


def certified(ward: Path, name: str, begin: datetime, days: int) -> None:
    """Give the node another certificate for its own key."""
    home = ward / "authority"
    authority = Authority(
        (home / "authority.crt").read_bytes(), (home / "authority.key").read_bytes()
    )
    subject = Subject(NodeName("ward", ROLES[name], name))
    request = new_request(subject, (ward / name / "node.key").read_bytes())
    (ward / name / "node.crt").write_bytes(issue(authority, request, subject, begin, days))


def test_a_node_in_order_has_no_fault_and_a_line_for_each_check(
    ward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator_node.memory_locking._may_swap", lambda _root: False)
    result = called(ward / "aggregator.toml")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(line.startswith("ok       ") for line in lines[:-1])
    checks = [line.removeprefix("ok       ").split(":")[0] for line in lines[:-1]]
    assert checks == ["file", "identity", "signing key", "access", "disk", "memory", "port", "port"]
    assert lines[-1] == f"{ward / 'aggregator.toml'}: no faults, no warnings"


@pytest.mark.parametrize("name", NODES)
def test_a_file_is_told_by_its_keys(ward: Path, name: str) -> None:
    sentence = examined(ward / f"{name}.toml").only("file", "ok")
    assert sentence.endswith(f"{name}.toml is the file of {ROLES[name]}/{name} in federation ward")


def test_a_file_of_no_node_is_named_with_the_keys_that_tell_them_apart(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('name = "j"\nowners = ["alice"]\n')
    sentence = examined(job).only("file", "fault")
    assert f"{job}: is no node's file" in sentence
    assert "give the file that the node starts with" in sentence


@pytest.mark.parametrize("arguments", [("absent.toml",), (), ("--timeout", "0", "x"), ("/tmp",)])  # noqa: S108 - a directory is no file
def test_a_wrong_command_line_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert called(*arguments).exit_code == 2


def test_a_file_that_is_no_toml_is_named(ward: Path) -> None:
    config = ward / "alice.toml"
    config.write_text("federation: ward\n")
    assert f"{config}: is not valid TOML" in examined(config).only("file", "fault")


@pytest.mark.parametrize("name", NODES)
def test_every_wrong_key_of_a_file_has_a_line_of_its_own(ward: Path, name: str) -> None:
    config = ward / f"{name}.toml"
    text = config.read_text().replace("federation = ", "federatoin = ")
    config.write_text(text.replace(f'name = "{name}"', 'name = "A B"', 1))
    sentences = examined(config).of("file", "fault")
    assert f"{config}: unknown key federatoin; did you mean federation?" in sentences
    assert f"{config}: the key federation is missing" in sentences
    assert any(sentence.startswith(f"{config}: name = 'A B': ") for sentence in sentences)
    assert len(sentences) == 3


def test_a_pinned_signing_key_that_is_none_is_named(ward: Path) -> None:
    config = pointed(ward / "alice.toml", "aggregator_signing_key", "ed25519:AAAA")
    sentence = examined(config).only("file", "fault")
    assert "aggregator_signing_key = 'ed25519:AAAA'" in sentence
    assert "ed25519: and 32 bytes in base64" in sentence


@pytest.mark.parametrize("name", NODES)
def test_all_that_is_wrong_with_the_identity_is_named_with_its_cure(ward: Path, name: str) -> None:
    home = ward / name
    (home / "node.key").chmod(0o640)
    stranger = new_authority("ward", datetime.now(UTC))
    (home / "authority.crt").write_bytes(stranger.certificate)
    sentences = examined(ward / f"{name}.toml").of("identity", "fault")
    assert len(sentences) == 2
    assert f"run `chmod 600 {home / 'node.key'}`" in sentences[0]
    assert "was not issued by the authority" in sentences[1]
    assert "ask whoever runs the aggregator for authority.crt" in sentences[1]


def test_a_missing_identity_file_is_named(ward: Path) -> None:
    (ward / "alice/node.crt").unlink()
    sentence = examined(ward / "alice.toml").only("identity", "fault")
    assert f"{ward / 'alice/node.crt'} cannot be read (it is missing)" in sentence


def test_the_key_of_another_certificate_is_named(ward: Path) -> None:
    (ward / "alice/node.key").write_bytes(new_key())
    sentence = examined(ward / "alice.toml").only("identity", "fault")
    assert "give the two files that were made together" in sentence


def test_the_certificate_of_another_node_is_named(ward: Path) -> None:
    for file in ("node.crt", "node.key"):
        (ward / "alice" / file).write_bytes((ward / "bob" / file).read_bytes())
    sentence = examined(ward / "alice.toml").only("identity", "fault")
    assert "is the certificate of owner/bob in federation ward" in sentence
    assert "but this node is owner/alice in federation ward" in sentence


def test_a_certificate_that_has_ended_is_a_fault_with_the_way_to_renew_it(ward: Path) -> None:
    certified(ward, "alice", datetime.now(UTC) - timedelta(days=3), 1)
    sentence = examined(ward / "alice.toml").only("identity", "fault")
    assert "expired on" in sentence
    assert "renew it with `cairn request` on this machine" in sentence


def test_a_certificate_of_tomorrow_tells_that_the_clock_is_wrong(ward: Path) -> None:
    certified(ward, "alice", datetime.now(UTC) + timedelta(days=2), 1)
    sentence = examined(ward / "alice.toml").only("identity", "fault")
    assert "is valid only from" in sentence
    assert "set this machine's clock" in sentence


def test_a_certificate_that_ends_within_thirty_days_is_a_warning(ward: Path) -> None:
    certified(ward, "aggregator", datetime.now(UTC), 29)
    found = examined(ward / "aggregator.toml")
    sentence = found.only("identity", "warning")
    assert f"{ward / 'aggregator/node.crt'} expires in 28 days" in sentence
    assert "renew it with `cairn request`" in sentence
    assert found.exit_code == 0


def test_a_certificate_that_ends_after_thirty_days_is_none(ward: Path) -> None:
    certified(ward, "aggregator", datetime.now(UTC), 31)
    assert examined(ward / "aggregator.toml").of("identity", "warning") == []


def test_a_pin_that_is_not_the_aggregators_is_named(ward: Path) -> None:
    pin = ward / "coordinator/aggregator.crt"
    pin.write_bytes((ward / "bob/node.crt").read_bytes())
    found = examined(ward / "coordinator.toml")
    assert f"{pin} is the certificate of owner/bob" in found.only("pin", "fault")
    assert "ask whoever runs the aggregator for its node.crt" in found.only("pin", "fault")
    assert found.only("peers", "note").startswith("not asked")


def of_another_authority(tmp_path: Path) -> bytes:
    """The certificate of the aggregator of another federation with the same name."""
    (tmp_path / "elsewhere").mkdir()
    return (made(tmp_path / "elsewhere") / "aggregator/node.crt").read_bytes()


@pytest.mark.parametrize("name", ["alice", "coordinator"])
def test_a_pin_of_another_authority_with_the_same_federation_name_is_a_fault(
    ward: Path, tmp_path: Path, name: str
) -> None:
    pin = ward / name / "aggregator.crt"
    pin.write_bytes(of_another_authority(tmp_path))
    found = examined(ward / f"{name}.toml")
    sentence = found.only("pin", "fault")
    assert f"{pin} was not issued by this node's authority" in sentence
    assert "ask whoever runs the aggregator for the present one" in sentence
    assert not found.of("pin", "ok")


def test_a_second_pin_of_another_authority_is_a_warning(ward: Path, tmp_path: Path) -> None:
    pin = ward / "alice/aggregator.crt"
    pin.write_bytes(pin.read_bytes() + of_another_authority(tmp_path))
    found = examined(ward / "alice.toml")
    assert "did not issue" in found.only("pin", "warning")
    assert found.of("pin", "ok")


def test_a_pin_that_ends_soon_is_a_warning(ward: Path) -> None:
    certified(ward, "aggregator", datetime.now(UTC), 5)
    (ward / "alice/aggregator.crt").write_bytes((ward / "aggregator/node.crt").read_bytes())
    sentence = examined(ward / "alice.toml").only("pin", "warning")
    assert f"{ward / 'alice/aggregator.crt'} expires in 4 days" in sentence
    assert "ask whoever runs the aggregator for the present one" in sentence


def test_the_aggregators_signing_key_must_be_one(ward: Path) -> None:
    (ward / "aggregator/signing.key").write_bytes(new_key())
    sentence = examined(ward / "aggregator.toml").only("signing key", "fault")
    assert "signing.key is not an Ed25519 key; `cairn init` makes one" in sentence


def test_a_signing_key_that_others_can_read_is_named(ward: Path) -> None:
    key = ward / "aggregator/signing.key"
    key.write_bytes(new_signing_key())
    key.chmod(0o644)
    sentence = examined(ward / "aggregator.toml").only("signing key", "fault")
    assert f"run `chmod 600 {key}`" in sentence


def test_a_state_directory_that_is_not_there_is_not_made_and_nothing_is_left(ward: Path) -> None:
    before = sorted(path for path in ward.rglob("*"))
    found = examined(ward / "alice.toml")
    assert "is made at the first start" in found.only("disk", "ok")
    assert sorted(path for path in ward.rglob("*")) == before


def test_a_file_where_the_state_directory_should_be_is_named(ward: Path) -> None:
    (ward / "alice/state").write_text("a file")
    sentence = examined(ward / "alice.toml").only("disk", "fault")
    assert f"the state directory {ward / 'alice/state'} cannot be used: [Errno 20]" in sentence
    assert "remove the file that is in a directory's place, or name another directory" in sentence


def in_a_shell(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `cairn doctor` where the script has limited what it may do."""
    program = f'{script}\nexec {BIN / "cairn"} doctor --json "$@"'
    command = ["/bin/bash", "-c", program, "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_disk_that_takes_no_file_is_a_fault(ward: Path) -> None:
    done = in_a_shell("ulimit -f 0", ward / "aggregator.toml")
    assert done.returncode == 1, done.stderr
    faults = [f for f in json.loads(done.stdout)["findings"] if f["grade"] == "fault"]
    assert [fault["check"] for fault in faults] == ["disk"]
    assert "cannot be used: [Errno 27] File too large" in faults[0]["sentence"]
    assert "or name another directory as `state` in this node's file" in faults[0]["sentence"]


@pytest.mark.skipif(not may_mount(), reason="this account may not mount a small disk")
@pytest.mark.parametrize(("size", "expected"), [("16k", "No space left"), ("8m", "8 MiB left")])
def test_a_full_disk_is_a_fault_and_a_nearly_full_one_a_warning(
    ward: Path, size: str, expected: str
) -> None:
    state = ward / "aggregator/state"
    state.mkdir()
    doctor = [str(BIN / "cairn"), "doctor", "--json", str(ward / "aggregator.toml")]
    command = [*on_small_disk(state, size), *doctor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (found,) = [f for f in json.loads(done.stdout)["findings"] if f["check"] == "disk"]
    full = expected == "No space left"
    assert found["grade"] == ("fault" if full else "warning")
    assert done.returncode == (1 if full else 0)
    assert expected in found["sentence"]
    assert "free space there, or name another directory as `state`" in found["sentence"]


def recorded(ward: Path, at: datetime) -> Path:
    """An owner's ledger with an entry of that moment."""
    state = StateDirectory(ward / "alice/state", OWNER_DATABASE)
    with state.transaction():
        Ledger(state.db, "ledger", At(at)).append("joined", {})
    state.close()
    return state.path / OWNER_DATABASE


def test_a_clock_before_the_nodes_last_entry_is_a_warning(ward: Path) -> None:
    file = recorded(ward, datetime.now(UTC) + timedelta(hours=2))
    sentence = examined(ward / "alice.toml").only("clock", "warning")
    assert f"before the last entry of {file} was made: set the clock" in sentence
    assert datetime.now(UTC).strftime("this machine's clock says %Y-%m-%d") in sentence


def test_a_clock_after_the_nodes_last_entry_is_in_order(ward: Path) -> None:
    file = recorded(ward, datetime.now(UTC) - timedelta(hours=2))
    expected = f"it is past the last entry of {file}, number 1"
    assert examined(ward / "alice.toml").only("clock", "ok") == expected


def test_a_damaged_ledger_is_named(ward: Path) -> None:
    (ward / "alice/state").mkdir()
    (ward / "alice/state" / OWNER_DATABASE).write_bytes(b"no database" * 1000)
    sentence = examined(ward / "alice.toml").only("ledger", "fault")
    assert f"{ward / 'alice/state'} cannot be used: file is not a database" in sentence
    assert "put a good copy of it back" in sentence


def test_a_node_that_runs_is_a_note_and_no_fault(ward: Path) -> None:
    state = StateDirectory(ward / "alice/state", OWNER_DATABASE)
    found = examined(ward / "alice.toml")
    assert found.only("process", "note") == f"a node that runs now has {state.path} open"
    assert "disk" not in found.faults()
    state.close()
    assert examined(ward / "alice.toml").of("process", "note") == []


def test_looking_at_the_lock_does_not_take_it(ward: Path) -> None:
    recorded(ward, datetime.now(UTC))
    examined(ward / "alice.toml")
    StateDirectory(ward / "alice/state", OWNER_DATABASE).close()


@pytest.mark.parametrize("name", ["aggregator", "coordinator"])
def test_a_port_of_another_process_is_a_fault(ward: Path, name: str) -> None:
    key = "listen" if name == "coordinator" else "listen_owners"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = pointed(ward / f"{name}.toml", key, address)
        sentence = examined(config, "--timeout", "0.2").only("port", "fault")
    assert sentence == (
        f"{key}: cannot listen on {address}: another process has the port; stop it, or change the"
        " address in this node's file"
    )


def test_two_keys_with_the_same_port_are_a_fault(ward: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    for key in ("listen_owners", "listen_coordinators"):
        pointed(ward / "aggregator.toml", key, address)
    sentence = examined(ward / "aggregator.toml").only("port", "fault")
    assert sentence.startswith(f"listen_coordinators: cannot listen on {address}")


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "the address is not this machine's"),  # of a network for documentation
        ("nowhere.invalid", "the name does not resolve"),
    ],
)
def test_an_address_that_is_not_this_machines_is_a_fault(ward: Path, host: str, why: str) -> None:
    config = pointed(ward / "coordinator.toml", "listen", f"{host}:7441")
    sentence = examined(config).only("port", "fault")
    assert f"listen: cannot listen on {host}:7441: {why}" in sentence
    assert "change the address in this node's file" in sentence


def test_a_task_and_its_data_are_looked_for_and_neither_is_run_nor_opened(ward: Path) -> None:
    (ward.parent / "data.csv").unlink()
    os.mkfifo(ward.parent / "data.csv")  # to open it would wait for ever
    found = examined(ward / "alice.toml")
    assert found.of("task", "ok")[:2] == [
        f"tasks.mean.file is {ward.parent / 'task.py'}",
        f"tasks.mean.data is {ward.parent / 'data.csv'}",
    ]


def test_what_a_task_lets_become_of_its_updates_is_said(ward: Path) -> None:
    config = ward / "alice.toml"
    allowed = (
        'contents = ["weights"]\nrules = ["mean", "trimmed_mean"]\noptimizers = ["none", "sgd"]'
    )
    text = config.read_text().replace("[tasks.mean]\n", f"[tasks.mean]\n{allowed}\n")
    config.write_text(text)
    assert examined(config).of("task", "ok")[-1] == (
        "tasks.mean allows contents weights; rules mean, trimmed_mean; optimizers none, sgd"
    )


def test_what_a_budget_rules_out_is_not_said_to_be_allowed(ward: Path) -> None:
    config = ward / "alice.toml"
    text = config.read_text().replace("[tasks.mean]\n", "[tasks.mean]\nmax_epsilon = 8.0\n")
    config.write_text(text)
    assert examined(config).of("task", "ok")[-1] == (
        "tasks.mean allows (max_epsilon) contents weights, gradients; rules private_mean;"
        " optimizers none, sgd, adagrad, adam, yogi"
    )


def test_a_missing_task_and_missing_data_are_named_by_their_keys(ward: Path) -> None:
    (ward.parent / "task.py").unlink()
    (ward.parent / "data.csv").unlink()
    code, data = examined(ward / "alice.toml").of("task", "fault")
    assert code.startswith(f"tasks.mean.file: there is no task file {ward.parent / 'task.py'};")
    assert "expected the path of an existing .py file" in code
    assert data.startswith(f"tasks.mean.data: there is no {ward.parent / 'data.csv'} (No such file")
    assert "correct the path in this owner's file, or put the data there" in data


def test_a_path_that_cannot_be_one_is_a_fault_like_any_other(ward: Path) -> None:
    config = ward / "alice.toml"
    text = config.read_text().replace("task.py", "t" * 300 + ".py")
    text = text.replace("data.csv", "d" * 300)
    config.write_text(text.replace('state = "', 'state = "' + "s" * 300))
    found = examined(config)
    code, data = found.of("task", "fault")
    assert "there is no task file" in code
    assert "(File name too long); correct the path" in data
    assert "File name too long" in found.only("disk", "fault")


def test_the_module_of_a_task_is_found_without_importing_its_package(
    ward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site/wardtasks"
    package.mkdir(parents=True)
    for name in ("__init__", "mean"):
        (package / f"{name}.py").write_text("raise RuntimeError('this must not be imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    config = ward / "alice.toml"
    config.write_text(config.read_text().replace("[tasks.mean]\nfile = ", "[tasks.mean]\n#"))
    text = config.read_text()
    for module, grade in (("wardtasks.mean", "ok"), ("wardtasks.median", "fault")):
        config.write_text(text.replace("[tasks.mean]", f'[tasks.mean]\nfile = "{module}:task"'))
        sentence = examined(config).of("task", grade)[0]
        assert "wardtasks" not in sys.modules
    assert "there is no module wardtasks.median; install its package" in sentence


def failed(ward: Path, times: int) -> None:
    """Record in alice's ledger that a task failed so often."""
    state = StateDirectory(ward / "alice/state", OWNER_DATABASE)
    with state.transaction():
        ledger = Ledger(state.db, "ledger", Clock())
        for number in range(times):
            facts = {"manifest_digest": f"{number:064x}", "task": "mean", "phase": "train"}
            ledger.append("joined", facts)
            ledger.append("declined", facts | {"reason": "TASK_FAILED"})
    state.close()


def test_what_the_failures_of_a_task_can_tell_is_said_in_bits(ward: Path) -> None:
    failed(ward, 1)
    sentence = examined(ward / "alice.toml").only("failures", "ok")
    assert sentence == (
        "what failures can tell a coordinator of task mean: at most 24 bits, beside what its"
        " running time tells, which work_seconds would hide; used are 1 of 1000 trainings, 0 of 1000 evaluations and"
        " 1 of 2 failures"
    )
    text = (ward / "alice.toml").read_text()
    (ward / "alice.toml").write_text(
        text.replace("[tasks.mean]\n", "[tasks.mean]\nwork_seconds = 5\n")
    )
    sentence = examined(ward / "alice.toml").only("failures", "ok")
    assert "at most 24 bits, and its running time nothing; used are" in sentence


def test_a_task_whose_failures_are_spent_is_a_warning_with_the_command_that_resets_it(
    ward: Path,
) -> None:
    failed(ward, 2)
    file = ward / "alice.toml"
    assert f"run `cairn reset {file} mean`" in examined(file).only("failures", "warning")


def sent(ward: Path, number: int, rule: str, **numbers: float) -> None:
    """Record in alice's ledger that an update left for a round."""
    state = StateDirectory(ward / "alice/state", OWNER_DATABASE)
    with state.transaction():
        facts = {
            "manifest_digest": f"{number:064x}",
            "task": "mean",
            "phase": "train",
            "metrics": {},
            "rule": rule,
            "rule_numbers": numbers,
        }
        Ledger(state.db, "ledger", Clock()).append("sent", facts)
    state.close()


def test_what_noisy_releases_have_told_of_a_task_is_said_where_the_file_limits_it(
    ward: Path,
) -> None:
    """Two releases of noise 2 tell epsilon 3.189 at delta 1e-5, by the accountants of others."""
    file = ward / "alice.toml"
    assert examined(file).of("privacy", "ok") == []
    file.write_text(file.read_text().replace("[tasks.mean]\n", "[tasks.mean]\nmax_epsilon = 8\n"))
    for number in (1, 2):
        sent(ward, number, "private_mean", noise=2.0)
    told = (
        "task mean has told epsilon 3.19 of 8 (delta 1e-05) of this owner, in 2 releases with noise"
    )
    assert examined(file).only("privacy", "ok") == told
    sent(ward, 3, "mean")
    plain = "; no epsilon covers the 1 updates that left for releases without noise"
    assert examined(file).only("privacy", "warning") == told + plain


def test_a_ledger_that_cannot_be_read_leaves_the_failures_uncounted(ward: Path) -> None:
    recorded(ward, datetime.now(UTC))
    assert "cannot be read" in examined(ward / "alice.toml").only("failures", "note")


def test_an_owner_without_tasks_is_told_what_becomes_of_invitations(tmp_path: Path) -> None:
    made(tmp_path)
    config = tmp_path / "ward/alice.toml"
    config.write_text(config.read_text().partition("\n[tasks.")[0])
    assert "every invitation is declined" in examined(config).only("task", "note")


@pytest.mark.parametrize("name", NODES)
def test_no_private_key_is_printed(ward: Path, name: str) -> None:
    secrets = [
        line for key in (ward / name).glob("*.key") for line in key.read_text().splitlines()[1:-1]
    ]
    assert secrets
    for options in ((), ("--json",)):
        output = called(ward / f"{name}.toml", *options).output
        assert [line for line in secrets if line in output] == []
