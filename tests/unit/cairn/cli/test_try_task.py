"""`cairn try` shows exactly what would leave, and explains mistakes."""

import os
import re
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from cairn.cli.try_task import try_task
from cairn.tasks.accounting import PrivateSteps, epsilon_of

TASK = """
import cairn
from torch import nn

def model(): return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
def data(site): return cairn.Data(train=site.data.read_text(), examples=3, test_examples=2)

def train(model, data, round):
    model[1].bias.data += round.settings["add"]
    return {"loss": 0.125}

def evaluate(model, data, round):
    return {"bias": model[1].bias.item()}

task = cairn.Task(model=model, data=data, train=train, evaluate=evaluate)
"""


@pytest.fixture(autouse=True)
def _in_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("site_task.py").write_text(TASK)
    Path("rows.csv").write_text("1,2\n")


def tried(*arguments: str) -> Result:
    return CliRunner().invoke(try_task, [*arguments])


def a_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))


def test_it_lists_every_tensor_and_the_digest_of_what_would_leave(tmp_path: Path) -> None:
    model = a_model()
    with torch.no_grad():
        model[1].bias += 0.5  # type: ignore[index]  # a Sequential can be indexed
    save_file(model.state_dict(), tmp_path / "expected.safetensors")
    expected = blake3((tmp_path / "expected.safetensors").read_bytes()).hexdigest()
    result = tried("site_task.py", "--data", "rows.csv", "--set", "add=0.5")
    assert result.exit_code == 0, result.output
    assert [name for name in model.state_dict() if name not in result.output] == []
    assert f"52 bytes, BLAKE3 {expected}" in result.output
    assert "train: 3 examples\n  loss = 0.125\n" in result.output
    assert "evaluate: 2 examples\n  bias = " in result.output
    assert '  metrics = ["bias", "loss"]\n' in result.output
    assert "Nothing was sent" in result.output


def exchanging(*exchanges: str, model: str = "") -> None:
    """Have the task exchange only these entries, and build its model after this line."""
    text = Path("site_task.py").read_text()
    text = text.replace("evaluate=evaluate)", f"evaluate=evaluate, exchanges={exchanges!r})")
    text = text.replace("def model(): return", f"def model():\n    {model}\n    return")
    Path("site_task.py").write_text(text)


def test_it_says_what_travels_and_what_stays_with_the_bytes_of_both() -> None:
    exchanging("1.*", "0.running_mean", model="__import__('torch').manual_seed(0)")
    model = a_model()
    with torch.no_grad():
        model[1].bias += 0.5  # type: ignore[index]  # a Sequential can be indexed
    sent = {n: t for n, t in model.state_dict().items() if n[0] == "1" or n == "0.running_mean"}
    save_file(sent, "expected.safetensors")
    expected = blake3(Path("expected.safetensors").read_bytes()).hexdigest()
    result = tried("site_task.py", "--data", "rows.csv", "--set", "add=0.5")
    assert result.exit_code == 0, result.output
    leaves, stays = result.output.split("What would stay, since the task does not exchange it:")
    assert [name for name in sent if name not in leaves] == []
    assert f"20 bytes, BLAKE3 {expected}" in leaves
    private = ["0.weight", "0.bias", "0.running_var", "0.num_batches_tracked"]
    assert [name for name in private if name not in stays or name in leaves] == []
    assert "\n32 bytes\n" in stays
    assert "Warning" not in result.output


GRADIENTS = """
def gradients(model, data, round):
    loss = model(torch.ones(2, 2)).sum()
    loss.backward()
    return {"loss": 2.5}
"""


def giving_gradients(*, alone: bool) -> None:
    """Have the task give gradients, beside its training or instead of it."""
    text = Path("site_task.py").read_text().replace("import cairn\n", "import cairn, torch\n")
    task = "task = cairn.Task(model=model, data=data, "
    kept = "" if alone else "train=train, "
    text = text.replace(f"{task}train=train, ", f"{GRADIENTS}\n{task}{kept}gradients=gradients, ")
    Path("site_task.py").write_text(text)


@pytest.mark.parametrize("alone", [True, False])
def test_it_shows_the_gradients_that_would_leave(
    alone: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    giving_gradients(alone=alone)
    model = a_model().train()
    model(torch.ones(2, 2)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    save_file(found, "expected.safetensors")
    expected = blake3(Path("expected.safetensors").read_bytes()).hexdigest()
    option = () if alone else ("--content", "gradients")
    result = tried("site_task.py", "--data", "rows.csv", *option)
    assert result.exit_code == 0, result.output
    leaves, stays = result.output.split("What would stay, since the task does not exchange it:")
    assert f"28 bytes, BLAKE3 {expected}" in leaves
    assert "0.running_mean" in stays
    assert "gradients: 3 examples\n  loss = 2.5\n" in stays
    bias = model[1].bias.item()  # type: ignore[index]  # a Sequential can be indexed
    assert f"evaluate: 2 examples\n  bias = {bias:.6g}\n" in stays


def test_it_lists_what_a_job_of_gradients_keeps_and_evaluates_with_it() -> None:
    giving_gradients(alone=False)
    text = Path("site_task.py").read_text()
    text = text.replace(
        "evaluate=evaluate)", "evaluate=evaluate, keeps=('0.running_*', '0.num_*'))"
    )
    text = text.replace('"bias": model[1].bias', '"batches": model[0].num_batches_tracked')
    Path("site_task.py").write_text(text)
    result = tried("site_task.py", "--data", "rows.csv", "--content", "gradients")
    assert result.exit_code == 0, result.output
    leaves, lasts = result.output.split("What would stay and last, since the task keeps it:")
    assert "28 bytes, BLAKE3" in leaves
    assert "\n24 bytes\n" in lasts
    assert "What would stay, since the task does not exchange it:" not in lasts
    assert "evaluate: 2 examples\n  batches = 1\n" in lasts


def test_a_task_that_cannot_do_what_is_asked_for_is_one_sentence() -> None:
    result = tried("site_task.py", "--data", "rows.csv", "--content", "gradients")
    assert result.exit_code == 2
    assert "the task has no gradients function" in result.output
    assert result.output.count(os.linesep) == 1


def test_it_lists_what_is_kept_apart_and_evaluates_with_it() -> None:
    text = Path("site_task.py").read_text()
    text = text.replace("evaluate=evaluate)", "evaluate=evaluate, keeps=('0.*', '1.bias'))")
    Path("site_task.py").write_text(text)
    result = tried("site_task.py", "--data", "rows.csv", "--set", "add=64")
    assert result.exit_code == 0, result.output
    leaves, lasts = result.output.split("What would stay and last, since the task keeps it:")
    assert "8 bytes, BLAKE3" in leaves
    assert "1.weight" in leaves
    kept = ["0.weight", "0.bias", "0.running_mean", "0.num_batches_tracked", "1.bias"]
    assert [name for name in kept if name not in lasts or name in leaves] == []
    assert "\n44 bytes\n" in lasts
    assert re.search(
        r"bias = 6[34]\.", lasts
    )  # as it was trained, and not as another model() has it
    assert "Warning" not in result.output


def test_it_warns_where_what_stays_is_built_with_other_values_each_time() -> None:
    exchanging("0.*", model="pass")
    result = tried("site_task.py", "--data", "rows.csv", "--set", "add=0.5")
    assert result.exit_code == 0, result.output
    assert "Warning: with another seed model() gives 1.weight other values" in result.output


def test_a_pattern_that_matches_nothing_is_one_sentence() -> None:
    exchanging("1.wieght")
    result = tried("site_task.py", "--data", "rows.csv", "--set", "add=0.5")
    assert result.exit_code == 2
    assert "'1.wieght', which matches no entry" in result.output
    assert "the closest are 1.weight" in result.output
    assert result.output.count(os.linesep) == 1


def test_a_whole_model_is_no_start_for_a_task_that_exchanges_a_part() -> None:
    exchanging("1.*")
    save_file(a_model().state_dict(), "whole.safetensors")
    arguments = ("--data", "rows.csv", "--set", "add=1", "--initial-model", "whole.safetensors")
    result = tried("site_task.py", *arguments)
    assert result.exit_code == 2
    assert "the job's model has 0.num_batches_tracked, which stays at this site" in result.output


def test_an_update_that_is_not_finite_is_refused_by_name() -> None:
    text = Path("site_task.py").read_text().replace("+= round.settings", "/= 0 * round.settings")
    Path("site_task.py").write_text(text)
    result = tried("site_task.py", "--data", "rows.csv", "--set", "add=1")
    assert result.exit_code == 2
    assert "after training the tensor 1.bias has a value that is NaN or infinite" in result.output


def test_an_evaluation_that_changes_the_model_changes_nothing_of_what_would_leave() -> None:
    arguments = ("site_task.py", "--data", "rows.csv", "--set", "add=0.5")
    expected = re.search("BLAKE3 .*", tried(*arguments).output)
    text = Path("site_task.py").read_text()
    changed = re.sub(
        r"def evaluate\(model, data, round\):", r"\g<0>\n    model[1].bias.data += 9\n", text
    )
    assert changed != text
    Path("site_task.py").write_text(changed)
    assert expected is not None
    assert expected[0] in tried(*arguments).output


def test_it_starts_from_a_given_model() -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in a_model().state_dict().items()}
    save_file(state, "zero.safetensors")
    arguments = ("--data", "rows.csv", "--set", "add=0.25", "--initial-model", "zero.safetensors")
    assert "bias = 0.25" in tried("site_task.py", *arguments).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("absent.py", "--data", "rows.csv"), "there is no task file absent.py"),
        (("json:task", "--data", "rows.csv"), "json:task has no 'task'"),
        (("site_task.py", "--data", "absent.csv"), "there is no absent.csv"),
        (("site_task.py", "--data", "rows.csv", "--set", "add"), "expected NAME=NUMBER"),
        (("site_task.py", "--data", "rows.csv", "--set", "add=nan"), "expected NAME=NUMBER"),
        (
            ("site_task.py", "--data", "rows.csv", "--initial-model", "rows.csv"),
            "Error: rows.csv is ",
        ),
    ],
)
def test_a_mistake_is_one_sentence_without_a_traceback(
    arguments: tuple[str, ...], words: str
) -> None:
    result = tried(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
    assert result.output.count(os.linesep) == 1


def test_the_tasks_own_failure_shows_its_own_traceback() -> None:
    result = tried("site_task.py", "--data", "rows.csv")
    assert result.exit_code == 2
    assert "site_task.py" in result.output
    assert "KeyError: 'add'" in result.output
    assert "Error: the task's train raised KeyError" in result.output
    assert "task_running.py" not in result.output


def test_the_task_is_tried_with_the_environment_that_a_node_would_pass_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASS", "secret")
    monkeypatch.setenv("WARD_DATABASE", "5")
    text = Path("site_task.py").read_text().replace("import cairn", "import os\nimport cairn")
    Path("site_task.py").write_text(
        text.replace(
            "0.125}", 'float(os.environ.get("WARD_DATABASE", 0)), "p": "PGPASS" in os.environ}'
        )
    )
    arguments = ("site_task.py", "--data", "rows.csv", "--set", "add=0.5")
    assert "loss = 0\n  p = 0\n" in tried(*arguments).output
    assert "loss = 5\n  p = 0\n" in tried(*arguments, "--environment", "WARD_DATABASE").output
    assert os.environ["PGPASS"] == "secret"


PRIVATE_TASK = """
import cairn
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

def model(): return nn.Linear(2, 1)
def data(site):
    return cairn.Data(train=TensorDataset(torch.ones(20, 2), torch.ones(20, 1)), examples=20)

def train(model, data, round):
    loader = DataLoader(data.train, batch_size=5)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader = cairn.private(model, optimizer, loader, epochs=2)
    for _ in range(2):
        for inputs, labels in loader:
            optimizer.zero_grad()
            (model(inputs) - labels).square().mean().backward()
            optimizer.step()

task = cairn.Task(model=model, data=data, train=train)
"""


def tried_privately(epsilon: float, noise: float = 1.0) -> Result:
    Path("private_task.py").write_text(PRIVATE_TASK)
    numbers = (str(number) for number in (epsilon, 1e-5, noise, 1.0))
    return tried("private_task.py", "--data", "rows.csv", "--private", *numbers)


def test_it_says_what_a_private_round_spends_and_how_many_the_budget_allows() -> None:
    round_ = PrivateSteps(0.25, 1.0, 8)
    epsilons = [epsilon_of([round_] * n, 1e-5) for n in (1, 2, 3, 4)]
    result = tried_privately((epsilons[2] + epsilons[3]) / 2)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "8 steps, each record in one of 4 batches, noise 1, clip 1" in words
    assert f"epsilon {epsilons[0]:.3g} of " in words
    assert f"epsilon {epsilons[2]:.3g} after 3 such rounds" in words
    assert "No metric would leave" in words


def test_a_private_round_beyond_the_budget_is_not_trained() -> None:
    result = tried_privately(0.5)
    assert result.exit_code == 2
    assert "this round alone makes epsilon" in result.output


def test_a_budget_that_no_file_could_have_is_refused() -> None:
    result = tried_privately(1.0, noise=0.0)
    assert result.exit_code == 2
    assert "--private: noise = 0: Input should be greater than or equal to 0.1" in result.output


def test_a_task_that_trains_privately_needs_the_owners_numbers() -> None:
    Path("private_task.py").write_text(PRIVATE_TASK)
    result = tried("private_task.py", "--data", "rows.csv")
    assert result.exit_code != 0
    assert "cairn try --private" in result.output
