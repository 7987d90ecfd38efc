"""How a settings file is read, and what its mistakes sound like."""

from pathlib import Path

import pytest

from aggregator_node.settings import AggregatorSettings
from cairn.errors import UsageError
from coordinator.settings import CoordinatorSettings, JobSettings
from owner_node.settings import OwnerSettings

OWNER = """
federation = "clinics"
name = "bob"
coordinator = "localhost:7441"
aggregator = "localhost:7443"
aggregator_signing_key = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
state = "bob/state"
[identity]
certificate = "bob/node.crt"
key = "/keys/node.key"
authority = "bob/authority.crt"
aggregator = "bob/aggregator.crt"
[tasks.tumours]
file = "task.py"
data = "patients.csv"
[tasks.tumours.settings]
lr = [0.0, 0.5]
"""


def load(tmp_path: Path, text: str) -> OwnerSettings:
    path = tmp_path / "bob.toml"
    path.write_text(text, encoding="utf-8")
    return OwnerSettings.load(path)


def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    settings = load(tmp_path, OWNER)
    assert settings.identity.certificate == tmp_path / "bob/node.crt"
    assert settings.identity.key == Path("/keys/node.key")
    assert settings.state == tmp_path / "bob/state"
    assert settings.tasks["tumours"].data == tmp_path / "patients.csv"
    assert settings.tasks["tumours"].file == str(tmp_path / "task.py")


def test_an_installed_task_is_named_as_it_is(tmp_path: Path) -> None:
    settings = load(tmp_path, OWNER.replace('"task.py"', '"clinic.tasks:tumours"'))
    assert settings.tasks["tumours"].file == "clinic.tasks:tumours"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "bob"', 'nmae = "bob"', "unknown key nmae; did you mean name?"),
        ("certificate =", "certifcate =", "identity.certifcate; did you mean certificate?"),
        ('data = "', 'date = "', "unknown key tasks.tumours.date; did you mean data?"),
        ('name = "bob"', "", "the key name is missing"),
        ('state = "bob/state"', "", "the key state is missing"),
        ("localhost:7441", "localhost", 'should be "HOST:PORT"'),
        ("localhost:7441", "localhost:99999", 'should be "HOST:PORT"'),
        ("[identity]", "floor = 1\n[identity]", "floor = 1"),
        ("ed25519:", "rsa:", "aggregator_signing_key = 'rsa:AAAA"),
        ("[0.0, 0.5]", "[0.5, 0.0]", "the smaller comes first"),
        ("[0.0, 0.5]", "0.5", "tasks.tumours.settings.lr = 0.5: should be a list"),
        ("[identity]", "[identity", "is not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, OWNER.replace(old, new))
    assert words in str(mistake.value)
    assert f"{tmp_path / 'bob.toml'}: " in str(mistake.value)


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, OWNER.replace('name = "bob"', "").replace("localhost:7443", "x"))
    assert len(str(mistake.value).splitlines()) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"aggregator\.toml: there is no such file"):
        AggregatorSettings.load(tmp_path / "aggregator.toml")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bob.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"bob\.toml: cannot be read"):
        OwnerSettings.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = " + "9" * 5000, "is not valid TOML"),
        ("x = 0x" + "f" * 9000, "an integer has more than 64 bits"),
        (
            OWNER + "[tasks.tumours.odd]\nx = [[0x" + "f" * 9000 + "]]",
            "an integer has more than 64",
        ),
        ("a" + ".a" * 400_000 + " = 1", "its keys have too many parts"),
        ("a = {b" + ".b" * 40_000 + " = 1}", "its keys have too many parts"),
    ],
    ids=["digits", "hexadecimal", "deep", "parts", "parts of a table"],
)
def test_no_number_or_key_crashes_the_reader_or_keeps_it_for_long(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        load(tmp_path, text)


def test_the_file_of_another_node_is_named_as_that(tmp_path: Path) -> None:
    path = tmp_path / "bob.toml"
    path.write_text(OWNER)
    for settings in (AggregatorSettings, CoordinatorSettings, JobSettings):
        with pytest.raises(UsageError) as mistake:
            settings.load(path)
        wanted = f"{path}: is the file of an owner, and that of {settings.kind} belongs here"
        assert str(mistake.value) == wanted
