"""All files of a federation: their layout, who may read them, and that nothing is ever overwritten."""

import re
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from aggregator_node.settings import AggregatorSettings
from cairn.config import Settings
from cairn.errors import CairnError, UsageError
from cairn.identity.credentials import load_identity
from cairn.identity.names import NodeName, Role
from cairn.identity.signing_keys import load_signing_key, public_signing_key_text
from cairn.identity.trust import load_pinned
from cairn.provisioning.create import FederationPlan, usual_floor, write_federation
from cairn.provisioning.plan import read_tasks
from cairn.provisioning.render import TASK_COMMENTS, _key, _value
from cairn.tasks.settings import TaskSettings
from coordinator.settings import CoordinatorSettings
from owner_node.settings import OwnerSettings

TUTORIAL = FederationPlan(name="tutorial", owners=("bob", "alice"), floor=2)
NODES = {
    "aggregator": Role.AGGREGATOR,
    "coordinator": Role.COORDINATOR,
    "alice": Role.OWNER,
    "bob": Role.OWNER,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("federation") / "tutorial"
    write_federation(directory, TUTORIAL)
    return directory


def toml(directory: Path, name: str) -> dict[str, Any]:
    return tomllib.loads((directory / f"{name}.toml").read_text())


def listing(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_a_federation_is_these_files_and_no_others(made: Path) -> None:
    node = ("authority.crt", "node.crt", "node.key")
    expected = {"authority", "authority/authority.crt", "authority/authority.key"}
    expected |= {"aggregator/signing.key"}
    for name in NODES:
        expected |= {name, f"{name}.toml", *(f"{name}/{file}" for file in node)}
        expected |= {f"{name}/aggregator.crt"} if name != "aggregator" else set()
    assert listing(made) == expected


def test_keys_and_their_directories_are_for_one_account_only(made: Path) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [made, *made.rglob("*")]}
    keys = [path for path in modes if path.suffix == ".key"]
    assert len(keys) == len(NODES) + 2
    assert {modes[path] for path in keys} == {0o600}
    assert {modes[path] for path in modes if path.is_dir()} == {0o700}


@pytest.mark.parametrize("name", NODES)
def test_each_nodes_file_leads_to_an_identity_that_is_in_order(made: Path, name: str) -> None:
    settings = toml(made, name)
    assert (settings["federation"], settings["name"]) == ("tutorial", name)
    files = SimpleNamespace(**{key: made / path for key, path in settings["identity"].items()})
    node = NodeName("tutorial", NODES[name], name)
    assert load_identity(files, node, datetime.now(UTC)).node == node


@pytest.mark.parametrize("name", ["coordinator", "alice", "bob"])
def test_each_node_pins_the_aggregators_certificate_and_signing_key(made: Path, name: str) -> None:
    settings = toml(made, name)
    pinned = made / settings["identity"]["aggregator"]
    assert pinned.read_bytes() == (made / "aggregator/node.crt").read_bytes()
    load_pinned(pinned, Role.AGGREGATOR, "tutorial", datetime.now(UTC))
    key = load_signing_key(made / toml(made, "aggregator")["identity"]["signing_key"])
    assert settings["aggregator_signing_key"] == public_signing_key_text(key)


def test_the_addresses_of_one_machine_are_those_of_loopback(made: Path) -> None:
    aggregator, coordinator, bob = (toml(made, n) for n in ("aggregator", "coordinator", "bob"))
    assert aggregator["listen_owners"] == "127.0.0.1:7443"
    assert aggregator["listen_coordinators"] == "127.0.0.1:7444"
    assert coordinator["listen"] == "127.0.0.1:7441"
    assert coordinator["aggregator"] == "localhost:7444"
    assert bob["coordinator"] == "localhost:7441"
    assert bob["aggregator"] == "localhost:7443"


def test_each_file_states_the_floor_and_why_two_is_risky(made: Path) -> None:
    assert [toml(made, name)["floor"] for name in ("aggregator", "alice", "bob")] == [2, 2, 2]
    assert toml(made, "aggregator")["owners"] == ["alice", "bob"]
    assert "can compute the other's update" in (made / "aggregator.toml").read_text()


def test_a_floor_of_three_carries_no_warning(tmp_path: Path) -> None:
    write_federation(tmp_path / "f", FederationPlan("f", ("a", "b", "c"), floor=3))
    assert "can compute" not in (tmp_path / "f" / "aggregator.toml").read_text()


def test_without_tasks_an_owners_file_shows_where_they_belong(made: Path) -> None:
    text = (made / "bob.toml").read_text()
    assert "tasks" not in toml(made, "bob")
    example = text[text.index("# [tasks.NAME]") :].replace("\n# ", "\n").removeprefix("# ")
    assert tomllib.loads(example)["tasks"]["NAME"]["settings"] == {"lr": [0.0, 1.0]}


def test_an_owners_file_says_where_its_ledger_lies_and_what_else_it_may_say(made: Path) -> None:
    settings = toml(made, "bob")
    assert (settings["state"], settings["largest_value"]) == ("bob/state", 1e9)
    text = (made / "bob.toml").read_text()
    assert '\n# trusted = ["alice"]\n' in text
    example = text[text.index("# [tasks.NAME]") :].replace("\n# ", "\n").removeprefix("# ")
    task = tomllib.loads(example)["tasks"]["NAME"]
    assert list(task) == [
        "file",
        "data",
        "metrics",
        "min_examples",
        "max_rounds",
        "max_failures",
        "work_seconds",
        "clip",
        "encodings",
        "contents",
        "rules",
        "optimizers",
        "min_cell",
        "max_statistics",
        "max_epsilon",
        "max_delta",
        "private",
        "environment",
        "sandbox",
        "sandbox_reads",
        "settings",
    ]


def test_a_machine_that_others_dial_listens_to_them_and_its_certificate_names_it(
    tmp_path: Path,
) -> None:
    plan = FederationPlan(
        name="hospitals",
        owners=("a", "b", "c"),
        floor=3,
        coordinator_address="model.example.org:9001",
        intake_address="192.0.2.7:9002",
        release_address="agg.internal:9003",
    )
    write_federation(tmp_path / "f", plan)
    aggregator = toml(tmp_path / "f", "aggregator")
    assert aggregator["listen_owners"] == "0.0.0.0:9002"
    assert aggregator["listen_coordinators"] == "0.0.0.0:9003"
    assert toml(tmp_path / "f", "coordinator")["listen"] == "0.0.0.0:9001"
    assert names_of(tmp_path / "f/aggregator/node.crt") >= {"192.0.2.7", "agg.internal"}
    assert names_of(tmp_path / "f/coordinator/node.crt") >= {"model.example.org"}


def names_of(path: Path) -> set[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


TASKS = """
[tasks.tutorial]
file = "code/task.py"
data = "data/{owner}.csv"
settings = { lr = [0, 1], "weight.decay" = [1e-5, 0.1] }
metrics = ["loss", "a \\"b\\""]
min_examples = 20
max_rounds = 100
max_failures = 5
work_seconds = 90
clip = 2
encodings = ["whole", "int8_deltas"]
contents = ["weights"]
rules = ["mean", "trimmed_mean", "private_mean"]
optimizers = ["none", "adam"]
min_cell = 20
max_statistics = 3
max_epsilon = 4
max_delta = 1e-6
environment = ["WARD_DB"]
sandbox = "on"
sandbox_reads = ["weights"]

[tasks."two words"]
file = "/opt/task.py"
data = "/data"
private = { epsilon = 3, delta = 1e-5, noise = 1.5, clip = 0.5 }
"""


def test_each_owner_gets_the_tasks_with_absolute_paths_and_its_own_data(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(TASKS)
    plan = FederationPlan("f", ("alice", "bob"), 2, tasks_file=tmp_path / "tasks.toml")
    write_federation(tmp_path / "f", plan)
    for owner in ("alice", "bob"):
        assert toml(tmp_path / "f", owner)["tasks"] == {
            "tutorial": {
                "file": str(tmp_path / "code/task.py"),
                "data": str(tmp_path / f"data/{owner}.csv"),
                "settings": {"lr": [0.0, 1.0], "weight.decay": [1e-5, 0.1]},
                "metrics": ["loss", 'a "b"'],
                "min_examples": 20,
                "max_rounds": 100,
                "max_failures": 5,
                "work_seconds": 90.0,
                "clip": 2.0,
                "encodings": ["whole", "int8_deltas"],
                "contents": ["weights"],
                "min_cell": 20,
                "max_statistics": 3,
                "rules": ["mean", "trimmed_mean", "private_mean"],
                "optimizers": ["none", "adam"],
                "max_epsilon": 4.0,
                "max_delta": 1e-6,
                "environment": ["WARD_DB"],
                "sandbox": "on",
                "sandbox_reads": [str(tmp_path / "weights")],
            },
            "two words": {
                "file": "/opt/task.py",
                "data": "/data",
                "metrics": [],
                "min_examples": 1,
                "private": {"epsilon": 3.0, "delta": 1e-5, "noise": 1.5, "clip": 0.5},
            },
        }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("aggregator", AggregatorSettings),
        ("coordinator", CoordinatorSettings),
        ("bob", OwnerSettings),
    ],
)
def test_every_key_of_a_node_stands_in_its_file(
    made: Path, name: str, settings: type[Settings]
) -> None:
    text = (made / f"{name}.toml").read_text()
    for key in settings.model_fields.keys() - {"identity", "tasks"}:
        assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), key
    assert "[identity]" in text


def test_every_key_of_a_task_that_an_owners_file_knows_is_written_to_it() -> None:
    assert {*TASK_COMMENTS, "settings"} == set(TaskSettings.model_fields)


def test_an_owners_node_reads_its_tasks_as_the_tasks_file_has_them(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(TASKS.replace('"two words"', "two-words"))
    tasks = read_tasks(tmp_path / "tasks.toml")
    every_key = tasks["tutorial"].model_fields_set | {"private"}  # which goes with no metrics
    assert every_key == set(TaskSettings.model_fields)
    assert tasks["two-words"].private is not None
    plan = FederationPlan("f", ("alice", "bob"), 2, tasks_file=tmp_path / "tasks.toml")
    write_federation(tmp_path / "f", plan)
    owner = OwnerSettings.load(tmp_path / "f" / "bob.toml")
    bobs = {"data": tmp_path / "data/bob.csv"}
    assert owner.tasks["tutorial"] == tasks["tutorial"].model_copy(update=bobs)
    assert owner.tasks["two-words"] == tasks["two-words"]


def test_a_task_of_an_installed_package_is_named_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(TASKS.replace("code/task.py", "clinic.tasks:tumours"))
    plan = FederationPlan("f", ("alice", "bob"), 2, tasks_file=tmp_path / "tasks.toml")
    write_federation(tmp_path / "f", plan)
    assert toml(tmp_path / "f", "bob")["tasks"]["tutorial"]["file"] == "clinic.tasks:tumours"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('file = "code/task.py"', "", "tasks.tutorial.file is missing"),
        ("file = ", "fiel = ", "fiel"),
        ("lr = [0, 1]", "lr = [1, 0]", "the smaller comes first"),
        ("lr = [0, 1]", "lr = [nan, 1]", "the smaller comes first"),
        ("lr = [0, 1]", "lr = [0]", "lr"),
        ("min_examples = 20", "min_examples = 0", "tasks.tutorial.min_examples = 0"),
        ("max_rounds = 100", "max_rounds = 0", "tasks.tutorial.max_rounds = 0"),
        ("max_failures = 5", "max_failures = 0", "tasks.tutorial.max_failures = 0"),
        ("max_epsilon = 4", "max_epsilon = 0", "tasks.tutorial.max_epsilon = 0"),
        ("max_epsilon = 4\n", "", "max_delta has no effect without max_epsilon"),
        (', "private_mean"', "", 'the rule "private_mean" alone, and rules leaves it out'),
        ("work_seconds = 90", "work_seconds = 0", "tasks.tutorial.work_seconds = 0"),
        ("clip = 2", "clip = nan", "tasks.tutorial.clip"),
        ('"int8_deltas"', '"int4_deltas"', "tasks.tutorial.encodings"),
        ("WARD_DB", "WARD-DB", "tasks.tutorial.environment"),
        ('sandbox = "on"', 'sandbox = "yes"', "tasks.tutorial.sandbox"),
        ('sandbox = "on"', 'sandbox = "off"', "sandbox_reads has no effect"),
        ('data = "/data"', 'data = "/d"\nmetrics = ["loss"]', "metrics lists loss beside private"),
        ("epsilon = 3", "epsilon = 0", "private.epsilon = 0"),
        ("delta = 1e-5", "delta = 1", "private.delta = 1"),
        ("noise = 1.5", "noise = 0", "private.noise = 0"),
        ("clip = 0.5", "clip = 0", "private.clip = 0"),
        ("noise = 1.5, ", "", "private.noise is missing"),
        ("[tasks.tutorial]", "[tasks.tutorial", "not valid TOML"),
    ],
)
def test_a_tasks_file_with_a_mistake_is_refused_and_nothing_is_made(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    (tmp_path / "tasks.toml").write_text(TASKS.replace(old, new, 1))
    plan = FederationPlan("f", ("alice", "bob"), 2, tasks_file=tmp_path / "tasks.toml")
    with pytest.raises(UsageError, match=complaint):
        write_federation(tmp_path / "f", plan)
    assert listing(tmp_path) == {"tasks.toml"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_its_quotation(text: str) -> None:
    assert tomllib.loads(f"{_key(text)} = {_value(text)}") == {text: text}


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    write_federation(tmp_path / "f", TUTORIAL)
    assert (tmp_path / "f" / "bob.toml").exists()
    assert not [name for name in listing(tmp_path) if ".cairn-" in name]


def test_a_directory_with_other_files_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_federation(tmp_path, TUTORIAL)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "bob" / "node.key").exists()


@pytest.mark.parametrize("existing", ["authority", "aggregator", "bob", "alice.toml"])
def test_where_one_target_exists_nothing_is_written(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UsageError, match=f"already holds {existing}; remove it or choose"):
        write_federation(tmp_path, TUTORIAL)
    assert listing(tmp_path) == {existing}
    assert (tmp_path / existing).read_text() == "mine"


def test_a_second_federation_does_not_replace_the_first(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="already holds"):
        write_federation(made, TUTORIAL)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_failure_halfway_leaves_nothing(tmp_path: Path) -> None:
    plan = FederationPlan("f", ("a", "b"), 2, coordinator_address="not a host:7441")
    with pytest.raises(UsageError, match="'not a host' is neither"):
        write_federation(tmp_path / "f", plan)
    assert listing(tmp_path) == set()


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UsageError, match="f cannot be made"):
        write_federation(tmp_path / "f", TUTORIAL)


@pytest.mark.parametrize(
    ("owners", "complaint"),
    [
        ((), "at least 2 owners and this one has 0"),
        (("bob",), "a cohort of one is always refused"),
        (("bob", "bob"), "the owner bob is listed twice"),
        (("bob", "aggregator"), "cannot be called aggregator"),
        (("bob", "coordinator"), "cannot be called coordinator"),
        (("bob", "authority"), "cannot be called authority"),
        (("bob", "../alice"), "cannot be a name"),
    ],
)
def test_owners_that_could_not_work_are_refused(owners: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(CairnError, match=complaint):
        FederationPlan("f", owners, floor=2)


@pytest.mark.parametrize("floor", [-1, 0, 1, 4])
def test_a_floor_that_could_not_work_is_refused(floor: int) -> None:
    with pytest.raises(UsageError, match=f"the floor is {floor}, but with 3 owners .* 2 to 3"):
        FederationPlan("f", ("a", "b", "c"), floor)


@pytest.mark.parametrize(("owners", "floor"), [(2, 2), (3, 3), (4, 3), (100, 3)])
def test_the_usual_floor_is_three_where_there_are_three(owners: int, floor: int) -> None:
    assert usual_floor(owners) == floor


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UsageError, match="should be HOST:PORT"):
        FederationPlan("f", ("a", "b"), 2, coordinator_address="host")


def test_one_port_cannot_serve_two_purposes() -> None:
    with pytest.raises(UsageError, match="on one port"):
        FederationPlan("f", ("a", "b"), 2, release_address="127.0.0.1:7443")
    with pytest.raises(UsageError, match="cannot both be at"):
        FederationPlan("f", ("a", "b"), 2, coordinator_address="localhost:7444")
