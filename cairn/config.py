"""How every node reads its TOML file: strictly, and with errors that a person can act on."""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
)

from cairn.address import Address
from cairn.errors import InvalidMessage, UsageError
from cairn.identity.names import NODE_NAME_PATTERN
from cairn.identity.signing_keys import parse_signing_key_text
from cairn.protocol.aggregation import RULES_UNLESS_SAID
from cairn.protocol.limits import MAX_ROUND_SECONDS, NAME_PATTERN
from cairn.protocol.words import RULES
from cairn.runtime.foreign_files import Incomplete, content_of
from cairn.runtime.quoting import quoted

_FILE_BYTES = 1 << 20
_MOST_DOTS_SQUARED = 10_000_000  # of a line; a thousand dots in one are a million
_INTEGER_BITS = 64  # with the sign
# What only a file of the kind has, or has together.
_KEYS: dict[str, frozenset[str]] = {
    "a coordinator": frozenset({"listen", "aggregator"}),
    "an owner": frozenset({"coordinator", "aggregator", "state", "tasks"}),
    "an aggregator": frozenset({"listen_owners", "listen_coordinators", "state"}),
    "a job": frozenset({"task", "model", "rounds"}),
}


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory", Path())
    return Path(directory) / path.expanduser()


def _address(text: str) -> str:
    try:
        Address.parse(text)
    except UsageError:
        raise ValueError('should be "HOST:PORT", for example "localhost:7443"') from None
    return text


def _signing_key(text: str) -> str:
    try:
        parse_signing_key_text(text)
    except InvalidMessage as error:
        raise ValueError(str(error)) from None
    return text


# Relative to the TOML file it stands in.
FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
AddressText = Annotated[str, AfterValidator(_address)]
SigningKeyText = Annotated[str, AfterValidator(_signing_key)]  # "ed25519:" and base64
Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
NodeLabel = Annotated[str, Field(pattern=f"^{NODE_NAME_PATTERN}$")]
Seconds = Annotated[int, Field(ge=1, le=MAX_ROUND_SECONDS)]

# Those of RULES, OPTIMIZERS and CONTENTS of cairn.protocol.words.
ModelContentWord = Literal["weights", "gradients"]  # of a job that has a model
ContentWord = Literal["weights", "gradients", "statistics"]
RuleWord = Literal[
    "mean",
    "sum",
    "norm_bounded_mean",
    "trimmed_mean",
    "bucketed_median",
    "multi_krum",
    "geometric_median",
    "centred_clipping",
    "private_mean",
]
RULE_WORDS_UNLESS_SAID: tuple[RuleWord, ...] = tuple(
    word for word in get_args(RuleWord) if RULES[word] in RULES_UNLESS_SAID
)
OptimizerWord = Literal["none", "sgd", "adagrad", "adam", "yogi"]


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises UsageError where there is none."""
    try:
        text = content_of(path, _FILE_BYTES).decode()
        _check_dots(text)
        values = tomllib.loads(text)
        _check_numbers(values)
        return values
    except Incomplete:
        raise UsageError(f"{path}: there is no such file") from None
    except InvalidMessage as error:
        raise UsageError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # tomllib's own, or Python's of a number with many digits
        raise UsageError(f"{path}: is not valid TOML: {error}") from None


def _check_dots(text: str) -> None:
    """Raise ValueError where keys have so many parts that tomllib, whose time is their square, would take minutes."""
    if sum(line.count(".") ** 2 for line in text.splitlines()) > _MOST_DOTS_SQUARED:
        raise ValueError("its keys have too many parts")


def _check_numbers(values: dict[str, Any]) -> None:
    """Raise ValueError at an integer that is larger than TOML's: Python could not even print some."""
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, int) and value.bit_length() >= _INTEGER_BITS:
            raise ValueError(f"an integer has more than {_INTEGER_BITS} bits")


def kind_of(keys: Collection[str]) -> str | None:
    """The kind whose keys most of these are; None where they are of none."""
    most = max(_KEYS, key=lambda kind: len(_KEYS[kind].intersection(keys)))
    return most if _KEYS[most].intersection(keys) else None


class Settings(BaseModel):
    """The root of every table of a settings file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str] = ""  # whose file it is, as `cairn.kinds_of_files` has it
    _read_from: Path | None = PrivateAttr(None)

    @property
    def read_from(self) -> Path | None:
        """The file that `load` has read."""
        return self._read_from

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check the file.

        Raises UsageError that names the file and every key that is wrong, or that it is another kind of file.
        """
        values = read_toml(path)
        kind = kind_of(values)
        try:
            settings = cls.of(values, str(path), path.parent)
        except UsageError:
            if cls.kind and kind and kind != cls.kind:
                raise UsageError(
                    f"{path}: is the file of {kind}, and that of {cls.kind} belongs here"
                ) from None
            raise
        settings._read_from = path  # noqa: SLF001 - an attribute of this very class
        return settings

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str, directory: Path = Path()) -> Self:
        """Check values as a file has them; relative paths begin at `directory`.

        Raises UsageError that names the source and every key that is wrong.
        """
        try:
            return cls.model_validate(values, context={"directory": directory})
        except ValidationError as error:
            lines = [_sentence(cls, detail) for detail in error.errors()]
            raise UsageError("\n".join(f"{source}: {line}" for line in lines)) from None


class IdentityFiles(Settings):
    """The files of a node's identity (cairn/identity/credentials.py)."""

    certificate: FilePath
    key: FilePath
    authority: FilePath


class PinnedIdentityFiles(IdentityFiles):
    """The identity of a node that dials the aggregator: with the one certificate it accepts there."""

    aggregator: FilePath


def _sentence(model: type[BaseModel], detail: Any) -> str:
    """Turn one of pydantic's error records into a sentence that names the key."""
    where = [quoted(str(part)) for part in detail["loc"]]
    key = ".".join(where)
    if detail["type"] == "extra_forbidden":
        known = _keys(model, where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(known)}"
        return f"unknown key {key}{hint}"
    if detail["type"] == "missing":
        return f"the key {key} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    if detail["type"] == "model_type":
        return f"{key} is a table: write its keys below a line [{key}]"
    if detail["type"] == "tuple_type":
        message = "should be a list"
    if detail["type"] == "literal_error" and isinstance(given, str):
        message = f"must be {detail['ctx']['expected']}{_nearest(given, detail['ctx']['expected'])}"
    if isinstance(given, str | int | float | bool):
        return f"{key} = {given!r}: {message}"
    return f"{key}: {message}" if key else message


def _nearest(given: str, expected: str) -> str:
    """Ask whether one of the expected words, which stand between quotation marks, was meant."""
    near = difflib.get_close_matches(given.lower(), expected.split("'")[1::2], n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """List the keys of the table at `path` below `model`."""
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", None)
        if fields is None or part not in fields:
            continue  # the name of an entry in a table of tables, such as a task's
        current = _table_type(fields[part].annotation)
    return list(getattr(current, "model_fields", {}))


def _table_type(annotation: Any) -> Any:
    """Find the settings class in an annotation such as dict[str, TaskSettings]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        found = _table_type(part)
        if found is not None:
            return found
    return None
