"""The training process seen from the owner's process, with a real child."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from cairn.errors import UpdateRefused
from cairn.model.exchanged import Exchanged
from cairn.model.schema import Schema
from cairn.model.validation import ANY_FINITE, check_values
from cairn.tasks.state_dict import payload_of, read_state, write_state
from cairn.v1 import round_pb2 as pb
from owner_node.training.child import kill
from owner_node.training.supervisor import (
    TaskFailed,
    TaskSource,
    Trained,
    TrainingSupervisor,
    Work,
)

TASK = """
import os, signal, sys, threading
import cairn, torch
from torch import nn

def model(): return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
def data(site): return cairn.Data(train=site, examples=5, test_examples=3)

def train(model, data, round):
    site = data.train
    {train}

def evaluate(model, data, round):
    return {{"bias": model[1].bias.item()}}

task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate)
"""
Start = Callable[[str], TrainingSupervisor]


def a_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))


SCHEMA, BASE = payload_of(a_model().state_dict())


def work(
    phase: Literal["train", "evaluate"] = "train",
    schema: Schema = SCHEMA,
    *,
    in_place: bool = False,
) -> Work:
    return Work("job", 4, phase, {"lr": 0.5}, schema, in_place)


IN_PLACE = work(in_place=True)


def run(process: TrainingSupervisor, order: Work | None = None) -> Trained:
    process.base_buffer(SCHEMA)[:] = BASE
    return process.run(order or work())


def failure(process: TrainingSupervisor) -> tuple[str, str]:
    with pytest.raises(TaskFailed) as caught:
        run(process)
    return pb.Reason.Name(caught.value.reason), str(caught.value)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[TrainingSupervisor] = []

    def start(train: str) -> TrainingSupervisor:
        (tmp_path / "task.py").write_text(TASK.format(train=train.replace("\n", "\n    ")))
        source = TaskSource("toy", str(tmp_path / "task.py"), tmp_path)
        started.append(TrainingSupervisor("bob", source))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.mark.parametrize("order", [work(), IN_PLACE])
def test_the_base_goes_in_and_the_update_comes_out_bit_by_bit(start: Start, order: Work) -> None:
    process = start(
        "model(torch.ones(2, 2)).sum().backward()\n"
        "torch.optim.SGD(model.parameters(), lr=round.settings['lr']).step()\n"
        "return {'round': round.number}"
    )
    expected = a_model().train()
    expected(torch.ones(2, 2)).sum().backward()
    torch.optim.SGD(expected.parameters(), lr=0.5).step()
    trained = run(process, order)
    assert (trained.examples, trained.metrics) == (5, {"round": 4.0})
    state: dict[str, Tensor] = read_state(SCHEMA, trained.payload)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())


def test_rounds_share_one_process_one_memory_and_one_reading_of_the_data(start: Start) -> None:
    process = start("return {'pid': os.getpid(), 'data': id(data)}")
    buffer = process.base_buffer(SCHEMA)
    first, second = run(process).metrics, run(process).metrics
    assert first == second
    assert first["pid"] != os.getpid()
    buffer[:1] = b"\x07"
    assert process.base_buffer(SCHEMA)[0] == 7


def test_a_base_is_only_held_by_the_memory_that_it_was_put_into(start: Start) -> None:
    process = start("pass")
    digest = SCHEMA.digest(BASE)
    other, _ = payload_of(nn.Linear(3, 3).state_dict())
    process.base_buffer(SCHEMA)[:] = BASE
    assert not process.has_base(SCHEMA, digest)  # nobody has said that it is good
    process.keep_base(digest)
    assert process.has_base(SCHEMA, digest)
    assert not process.has_base(SCHEMA, other.digest(bytes(other.total_bytes)))
    assert not process.has_base(other, digest)
    assert not process.has_base(SCHEMA, digest)  # made anew meanwhile, and empty
    assert bytes(process.base_buffer(SCHEMA)) == bytes(SCHEMA.total_bytes)


def test_a_base_that_was_written_to_is_not_held_any_more(start: Start) -> None:
    process = start("pass")
    digest = SCHEMA.digest(BASE)
    process.base_buffer(SCHEMA)[:] = BASE
    process.keep_base(digest)
    process.run(work())
    assert process.has_base(SCHEMA, digest)
    process.base_buffer(SCHEMA)[-1] ^= 1
    assert not process.has_base(SCHEMA, digest)


def test_what_was_trained_in_place_lies_where_the_base_was(start: Start) -> None:
    process = start("model[1].bias.data += 1")
    trained = run(process, IN_PLACE)
    state = read_state(SCHEMA, trained.payload)
    assert state["1.bias"] == a_model().state_dict()["1.bias"] + 1
    assert process.base_buffer(SCHEMA) == trained.payload != BASE


def test_what_was_trained_apart_leaves_the_base_as_it_was(start: Start) -> None:
    process = start("model[1].bias.data += 1")
    trained = run(process)
    assert read_state(SCHEMA, trained.payload)["1.bias"] == a_model().state_dict()["1.bias"] + 1
    assert process.base_buffer(SCHEMA) == BASE


def test_after_training_in_place_the_base_is_fetched_again_whatever_became_of_it(
    start: Start,
) -> None:
    process = start(
        "if 'dead' not in os.listdir(site.data):\n"
        "    (site.data / 'dead').touch()\n"
        "    os.kill(os.getpid(), 9)"
    )
    digest = SCHEMA.digest(BASE)
    process.base_buffer(SCHEMA)[:] = BASE
    process.keep_base(digest)
    with pytest.raises(TaskFailed, match="was killed by SIGKILL"):
        process.run(IN_PLACE)
    assert not process.has_base(SCHEMA, digest)
    process.base_buffer(SCHEMA)[:] = BASE
    process.keep_base(digest)
    process.run(IN_PLACE)  # changes nothing, and nobody can know that
    assert not process.has_base(SCHEMA, digest)


def test_an_evaluation_leaves_the_base_for_the_training_after_it(start: Start) -> None:
    process = start("model[1].bias.data += 1")
    digest = SCHEMA.digest(BASE)
    process.base_buffer(SCHEMA)[:] = BASE
    process.keep_base(digest)
    process.run(work("evaluate"))
    assert process.has_base(SCHEMA, digest)
    state = read_state(SCHEMA, process.run(IN_PLACE).payload)
    assert state["1.bias"] == a_model().state_dict()["1.bias"] + 1


@pytest.mark.parametrize(("in_place", "models"), [(True, 1), (False, 2)])
def test_a_model_trained_in_place_takes_its_memory_once_and_one_trained_apart_twice(
    tmp_path: Path,
    in_place: bool,  # noqa: FBT001 - a parameter of the test
    models: int,
) -> None:
    (tmp_path / "task.py").write_text(
        "import cairn, torch\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(1024, 1024, bias=False)\n"
        "def data(site): return cairn.Data(train=None, examples=1)\n"
        "def train(model, data, round): model.weight.data += 1\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    schema, payload = payload_of({"weight": torch.ones(1024, 1024)})
    process = TrainingSupervisor("bob", TaskSource("big", str(tmp_path / "task.py"), tmp_path))
    try:
        for _ in range(3):
            process.base_buffer(schema)[:] = payload
            process.run(work(schema=schema, in_place=in_place))
            assert process._memory is not None
            taken = os.fstat(process._memory.descriptor).st_blocks * 512
            assert taken == models * len(payload)
    finally:
        process.close()


KEPT = {
    "the model": "model",
    "its tensors": "list(model.parameters()) + list(model.buffers())",
    "its state_dict": "model.state_dict()",
}
MOON = """\
previous = globals().setdefault('previous', [])
tensors = lambda kept: (
    [*kept.state_dict().values()] if hasattr(kept, 'state_dict')
    else [*kept.values()] if hasattr(kept, 'values') else kept)
changed = sum(not torch.equal(now, then) for kept, copies in previous
    for now, then in zip(tensors(kept), copies, strict=True))
model[1].bias.data += 1
kept = {kept}
previous.append((kept, [tensor.clone() for tensor in tensors(kept)]))
return {{'changed': changed, 'rounds': len(previous)}}"""


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT.keys())
def test_what_a_task_keeps_of_a_round_is_unchanged_in_the_next(
    start: Start,
    kept: str,
    in_place: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    process = start(MOON.format(kept=kept))
    order = work(in_place=in_place)
    for number in range(1, 4):
        base = bytearray(BASE)
        read_state(SCHEMA, base)["1.bias"].fill_(number)
        process.base_buffer(SCHEMA)[:] = base
        trained = process.run(order)
        assert trained.metrics == {"changed": 0.0, "rounds": number}
        assert read_state(SCHEMA, trained.payload)["1.bias"] == number + 1
        if not in_place:
            assert process.base_buffer(SCHEMA) == base
        trained.payload[:] = bytes(len(base))  # as clipping would write to it


def test_an_evaluation_that_keeps_the_model_leaves_the_base_and_gets_the_next_one(
    start: Start, tmp_path: Path
) -> None:
    process = start("pass")
    text = (
        (tmp_path / "task.py")
        .read_text()
        .replace(
            'return {"bias"', "globals().setdefault('kept', []).append(model)\n    return {'bias'"
        )
    )
    (tmp_path / "task.py").write_text(
        text.replace("model[1].bias.item()", "sum(m[1].bias.item() for m in kept)")
    )
    for number, total in ((1, 1), (2, 3), (3, 6)):
        base = bytearray(BASE)
        read_state(SCHEMA, base)["1.bias"].fill_(number)
        process.base_buffer(SCHEMA)[:] = base
        process.keep_base(SCHEMA.digest(base))
        assert process.run(work("evaluate")).metrics == {"bias": total}
        assert process.has_base(SCHEMA, SCHEMA.digest(base))


def test_a_task_that_fails_and_keeps_the_model_keeps_its_memory_too(start: Start) -> None:
    process = start(
        "kept = globals().setdefault('kept', [])\n"
        "if kept: return {'bias': kept[0][1].bias.item()}\n"
        "kept.append(model)\n"
        "model[1].bias.data.fill_(7)\n"
        "raise ValueError"
    )
    with pytest.raises(TaskFailed):
        run(process, IN_PLACE)
    assert run(process, IN_PLACE).metrics == {"bias": 7.0}


@pytest.mark.parametrize("order", [work(), IN_PLACE])
def test_what_a_forked_process_does_to_its_model_is_not_trained(start: Start, order: Work) -> None:
    process = start(
        "def forked(work):\n"
        "    if not (pid := os.fork()):\n"
        "        os._exit(work())\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "bias = model[1].bias.data\n"
        "bias.fill_(3)\n"
        "def child():\n"
        "    bias.add_(1)\n"
        "    return forked(grandchild) + int(bias.item())\n"
        "def grandchild():\n"
        "    bias.add_(10)\n"
        "    return int(bias.item())\n"
        "return {'theirs': forked(child), 'mine': bias.item()}"
    )
    trained = run(process, order)
    assert trained.metrics == {"theirs": 18.0, "mine": 3.0}
    assert read_state(SCHEMA, trained.payload)["1.bias"] == 3


@pytest.mark.parametrize("order", [work(), IN_PLACE])
def test_a_forked_process_has_the_model_as_it_was_at_the_fork(start: Start, order: Work) -> None:
    process = start(
        "come, go = os.pipe()\n"
        "bias = model[1].bias.data\n"
        "bias.fill_(3)\n"
        "if not (pid := os.fork()):\n"
        "    os.read(come, 1)\n"
        "    os._exit(int(bias.item()))\n"
        "bias.fill_(5)\n"
        "os.write(go, b'.')\n"
        "return {'theirs': os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 'mine': bias.item()}"
    )
    assert run(process, order).metrics == {"theirs": 3.0, "mine": 5.0}


def test_a_forked_process_that_lives_on_has_its_model_in_later_rounds_too(start: Start) -> None:
    process = start(
        "held = globals().setdefault('held', [])\n"
        "if not held:\n"
        "    model[1].bias.data.fill_(3)\n"
        "    come, go = os.pipe()\n"
        "    if not (pid := os.fork()):\n"
        "        os.read(come, 1)\n"
        "        os._exit(int(model[1].bias.item()))\n"
        "    held.append((pid, go))\n"
        "    return {}\n"
        "pid, go = held[0]\n"
        "os.write(go, b'.')\n"
        "return {'theirs': os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
    )
    run(process, IN_PLACE)
    assert run(process, IN_PLACE).metrics == {"theirs": 3.0}


def test_a_model_that_is_part_of_a_cycle_is_gone_before_the_next_round(start: Start) -> None:
    process = start(
        "import weakref\n"
        "seen = globals().setdefault('seen', [])\n"
        "alive = sum(model() is not None for model in seen)\n"
        "model.me = [model]\n"
        "seen.append(weakref.ref(model))\n"
        "return {'alive': alive}"
    )
    for _ in range(3):
        assert run(process, IN_PLACE).metrics == {"alive": 0.0}


@pytest.mark.parametrize("order", [work(), IN_PLACE])
def test_a_value_that_is_not_finite_comes_out_to_be_refused_by_name(
    start: Start, order: Work
) -> None:
    trained = run(start("model[1].bias.data[0] = float('nan')"), order)
    with pytest.raises(UpdateRefused, match=r"tensor 1\.bias has a value that is NaN") as caught:
        check_values(SCHEMA, trained.payload, ANY_FINITE)
    assert caught.value.reason == pb.REASON_NON_FINITE


def test_an_evaluation_returns_metrics_and_no_tensors(start: Start) -> None:
    trained = run(start("pass"), work("evaluate"))
    assert trained.payload.nbytes == 0
    assert trained.examples == 3
    assert trained.metrics == {"bias": a_model().state_dict()["1.bias"].item()}


def test_another_job_of_another_model_gets_a_memory_of_its_own(start: Start) -> None:
    process = start("pass")
    run(process)
    other, _ = payload_of(nn.Linear(3, 3).state_dict())
    with pytest.raises(TaskFailed) as caught:
        process.run(work(schema=other))
    assert caught.value.reason == pb.REASON_SCHEMA_MISMATCH
    assert bytes(run(process).payload[:8]) == bytes(8)  # num_batches_tracked


def test_a_model_larger_than_the_sockets_buffers_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "import cairn, torch\n"
        "from torch import nn\n"
        "def model():\n"
        "    return nn.ParameterDict({f'{n:04}': nn.Parameter(torch.zeros(500)) for n in range(4000)})\n"
        "def data(site): return cairn.Data(train=None, examples=1)\n"
        "def train(model, data, round): model['3999'].data += 1\n"
        "task = cairn.Task(model=model, data=data, train=train)\n"
    )
    state = {f"{n:04}": torch.full((500,), n / 7) for n in range(4000)}
    schema, payload = payload_of(state)
    state["3999"] += 1
    process = TrainingSupervisor("bob", TaskSource("big", str(tmp_path / "task.py"), tmp_path))
    try:
        process.base_buffer(schema)[:] = payload
        trained = process.run(work(schema=schema))
        write_state(state, schema, payload)
        assert trained.payload == payload
    finally:
        process.close()


@pytest.mark.parametrize(
    ("train", "reason", "words"),
    [
        ("raise ValueError('patient 7')", "REASON_TASK_FAILED", "train raised ValueError"),
        ("sys.exit(0)", "REASON_TASK_FAILED", "train raised SystemExit"),
        (
            "model[1] = nn.Linear(2, 3)",
            "REASON_WRONG_TENSORS",
            "1.bias F32[3] should be 1.bias F32[1]",
        ),
        ("return 3", "REASON_TASK_FAILED", "returned int"),
        ("os._exit(3)", "REASON_TASK_FAILED", "ended with exit status 3"),
        ("os.kill(os.getpid(), 9)", "REASON_TASK_FAILED", "was killed by SIGKILL"),
        ("os.kill(os.getpid(), 15)", "REASON_TASK_FAILED", "was killed by SIGTERM"),
    ],
)
def test_each_way_to_fail_has_its_reason_and_the_next_round_its_chance(
    start: Start, tmp_path: Path, train: str, reason: str, words: str
) -> None:
    process = start(
        f"if not (site.data / 'failed').exists():\n"
        f"    (site.data / 'failed').touch()\n"
        f"    {train}\n"
        f"return {{'loss': 0.5}}"
    )
    code, text = failure(process)
    assert code == reason
    assert words in text
    assert "patient" not in text
    assert run(process).metrics == {"loss": 0.5}
    assert (tmp_path / "failed").exists()


def test_the_traceback_is_on_the_owners_console(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    failure(start("raise ValueError('patient 7')"))
    console = capfd.readouterr().err
    assert console.startswith("Traceback (most recent call last):\n")
    assert "task.py" in console.splitlines()[1]
    assert console.endswith("ValueError: patient 7\n")


def test_a_cancelled_run_ends_at_once_and_the_next_one_runs(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "training")
    process = start("(site.data / 'training').open('w')\nthreading.Event().wait()")
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(failure(process)[1]))
    thread.start()
    (tmp_path / "training").open().close()  # waits until the task runs
    process.cancel()
    thread.join(30)
    assert ended == ["the training was cancelled"]
    assert run(process, work("evaluate")).examples == 3


def test_a_run_that_is_over_before_it_begins_does_not_begin(start: Start) -> None:
    process = start("return {}")
    run(process)
    with pytest.raises(TaskFailed, match="the training was cancelled"):
        process.run(work(), lambda: True)
    run(process)


def test_to_cancel_when_nothing_runs_leaves_the_process_alone(start: Start) -> None:
    process = start("return {'pid': os.getpid()}")
    first = run(process).metrics
    process.cancel()
    assert run(process).metrics == first


@pytest.mark.usefixtures("cold")
def test_closing_ends_an_idle_process_in_the_ordinary_way(start: Start, tmp_path: Path) -> None:
    process = start(
        "import atexit\natexit.register((site.data / 'goodbye').touch)\nreturn {'pid': os.getpid()}"
    )
    pid = int(run(process).metrics["pid"])
    process.close()
    assert (tmp_path / "goodbye").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ctrl_c_does_not_reach_the_task(start: Start) -> None:
    process = start("os.kill(os.getpid(), signal.SIGINT)\nreturn {'group': os.getpgrp()}")
    assert run(process).metrics["group"] != os.getpgrp()


def test_the_training_process_dies_with_the_owners_process_even_while_it_trains(
    tmp_path: Path,
) -> None:
    train = (
        "(site.data / 'training').open('w').write(str(os.getpid()))\n    threading.Event().wait()"
    )
    (tmp_path / "task.py").write_text(TASK.format(train=train))
    os.mkfifo(tmp_path / "training")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cairn.model.schema import Schema, TensorSpec\n"
        "from owner_node.training.supervisor import *\n"
        f"schema = Schema.of(TensorSpec(n, d, tuple(s)) for n, d, s in {specs(SCHEMA)})\n"
        "process = TrainingSupervisor('bob', TaskSource('toy', sys.argv[1], Path(sys.argv[2])))\n"
        "process.run(Work('job', 1, 'train', {}, schema))\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "task.py"), str(tmp_path)]
    with subprocess.Popen(arguments) as owner:
        pid = int((tmp_path / "training").read_text())
        child = os.pidfd_open(pid)
        owner.kill()
    # A descriptor of a process is readable once the process has ended.
    assert readable(child, seconds=30)
    os.close(child)


def specs(schema: Schema) -> list[tuple[str, str, list[int]]]:
    return [(spec.name, spec.dtype, list(spec.shape)) for spec in schema.tensors]


def readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def test_the_task_has_no_socket_but_one_and_cannot_pass_it_on(start: Start) -> None:
    process = start(
        "import stat, subprocess\n"
        "def sockets():\n"
        "    modes = []\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        try: modes.append(os.fstat(int(name)).st_mode)\n"
        "        except OSError: pass\n"
        "    return sum(map(stat.S_ISSOCK, modes))\n"
        "mine = sockets()\n"
        "forked = os.fork()\n"
        "if not forked: os._exit(sockets())\n"
        "inherited = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])\n"
        "listing = subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False,\n"
        "    stdout=subprocess.PIPE, text=True).stdout\n"
        "return {'mine': mine, 'forked': inherited, 'executed': listing.count('socket:')}"
    )
    with open_socket():
        metrics = run(process).metrics
    assert metrics == {"mine": 1.0, "forked": 0.0, "executed": 0.0}


def open_socket() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.set_inheritable(True)
    return listening


SECRETS = (
    *("PGPASS", "PGPASSFILE", "CREDENTIALS_FILE", "AWS_ACCESS_ID", "AWS_ACCESS_KEY_ID", "API_KEY"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "DATABASE_URL", "HTTPS_PROXY", "https_proxy", "HF_TOKEN"),
    *("SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "KUBECONFIG", "CAIRN_FAILPOINTS"),
)


@pytest.mark.usefixtures("cold")
def test_the_task_gets_no_variable_that_is_not_known_to_be_harmless_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        *SECRETS,
        "WARD_DATABASE",
        "WARD_NUMBER",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
    ):
        monkeypatch.setenv(name, "1")
    body = f"names = {(*SECRETS, 'WARD_DATABASE')!r}\n"
    body += (
        "return {'secrets': sum(name in os.environ for name in names),\n"
        "    'named': int(os.environ['WARD_NUMBER']), 'grpc': 'grpc' in sys.modules,\n"
        "    'known': sum(n in os.environ for n in ('PATH', 'OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')),\n"
        "    'fork': os.environ['GRPC_ENABLE_FORK_SUPPORT'] == '0'}"
    )
    (tmp_path / "task.py").write_text(TASK.format(train=body.replace("\n", "\n    ")))
    source = TaskSource(
        "toy", str(tmp_path / "task.py"), tmp_path, environment=("WARD_NUMBER", "NOT_SET")
    )
    with closing(TrainingSupervisor("bob", source)) as process:
        assert run(process).metrics == {
            "secrets": 0.0,
            "named": 1.0,
            "grpc": 0.0,
            "known": 3.0,
            "fork": 1.0,
        }


def test_workers_of_a_dataloader_can_be_forked_or_spawned(start: Start, tmp_path: Path) -> None:
    process = start(
        "from torch.utils.data import DataLoader\n"
        "loaders = [DataLoader(Squares(), num_workers=1, multiprocessing_context=c)\n"
        "    for c in ('fork', 'spawn')]\n"
        "return {str(n): sum(int(x) for x in loader) for n, loader in enumerate(loaders)}"
    )
    with (tmp_path / "task.py").open("a") as file:
        file.write(
            "class Squares:\n"
            "    def __len__(self): return 4\n"
            "    def __getitem__(self, n): return n * n\n"
        )
    assert run(process).metrics == {"0": 14.0, "1": 14.0}


def test_the_owners_process_imports_no_torch_and_no_grpc() -> None:
    script = (
        "import sys, owner_node.training.supervisor\nprint({'torch', 'grpc'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_starting_returns_before_the_task_is_loaded_and_twice_is_once(start: Start) -> None:
    process = start("return {'pid': os.getpid()}")
    process.start()
    assert process._child is not None
    pid = process._child.process.pid
    process.start()
    assert run(process).metrics == {"pid": float(pid)}


def test_a_process_that_died_between_rounds_is_replaced(start: Start) -> None:
    process = start("return {'pid': os.getpid()}")
    first = run(process).metrics["pid"]
    os.kill(int(first), signal.SIGKILL)
    assert process._child is not None
    process._child.process.wait()
    assert run(process).metrics["pid"] != first


def test_it_says_what_the_tasks_model_exchanges_without_any_memory_or_data(
    start: Start,
) -> None:
    process = start("pass")
    for _ in range(2):
        assert process.model() == Exchanged(
            SCHEMA, frozenset(), gives_weights=True, gives_gradients=False
        )
    assert process._memory is None
    assert run(process).examples == 5


def test_a_model_that_cannot_be_built_is_asked_for_again_once_the_task_is_mended(
    tmp_path: Path,
) -> None:
    file = tmp_path / "task.py"
    file.write_text("1 / 0")
    process = TrainingSupervisor("bob", TaskSource("task", str(file), tmp_path))
    try:
        for _ in range(2):
            with pytest.raises(TaskFailed, match="raised ZeroDivisionError"):
                process.model()
        file.write_text(TASK.format(train="pass"))
        assert process.model().schema == SCHEMA
    finally:
        process.close()


def test_the_wait_for_what_the_process_says_of_its_model_can_be_cancelled(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    file = tmp_path / "task.py"
    file.write_text(f"open({str(gate)!r}).read()")
    process = TrainingSupervisor("bob", TaskSource("task", str(file), tmp_path))
    over = threading.Event()

    def cancel() -> None:
        with gate.open("w"):  # once it imports the task
            over.set()
            process.cancel()

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    try:
        with pytest.raises(TaskFailed, match="cancelled"):
            process.model(over.is_set)
    finally:
        cancelling.join()
        process.close()


def test_to_say_it_changes_no_random_number_of_a_task_that_seeds_when_it_is_imported(
    tmp_path: Path,
) -> None:
    file = tmp_path / "task.py"
    train = "return {'drawn': torch.rand(()).item()}"
    file.write_text(TASK.format(train=train) + "torch.manual_seed(7)\n")
    process = TrainingSupervisor("bob", TaskSource("task", str(file), tmp_path))
    try:
        process.model()
        drawn = run(process).metrics["drawn"]
    finally:
        process.close()
    torch.manual_seed(7)
    nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))  # the round's own model
    assert drawn == torch.rand(()).item()


def test_what_is_kept_goes_in_and_comes_out_in_memory_of_its_own(tmp_path: Path) -> None:
    text = TASK.format(train="model[0].running_mean += 1")
    (tmp_path / "task.py").write_text(text.replace("evaluate=evaluate", "keeps=('0.running_*',)"))
    source = TaskSource("toy", str(tmp_path / "task.py"), tmp_path)
    with closing(TrainingSupervisor("bob", source)) as process:
        model = process.model()
        assert model.kept is not None
        assert [spec.name for spec in model.kept.tensors] == ["0.running_mean", "0.running_var"]
        process.base_buffer(model.schema)[:] = bytes(model.schema.total_bytes)
        order = Work("job", 1, "train", {}, model.schema, kept=model.kept)
        buffer, means = process.kept_buffer(model.kept), []
        for begins_with_kept in (False, True, True, False):
            process.run(replace(order, begins_with_kept=begins_with_kept))
            state = read_state(model.kept, buffer)
            means.append(state["0.running_mean"].tolist())
            assert state["0.running_var"].tolist() == [1, 1]
        assert means == [[1, 1], [2, 2], [3, 3], [1, 1]]
        assert process._child is not None
        kill(process._child)  # the next one is given the memory anew
        process._child.process.wait()
        process.run(replace(order, begins_with_kept=True))
        assert read_state(model.kept, buffer)["0.running_mean"].tolist() == [2, 2]
