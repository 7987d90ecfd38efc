"""The folders of `cairn` are layers, and what needs PyTorch or dials stands apart: read off the code itself."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A layer imports what stands before it, and itself.
LAYERS = (
    *("errors", "runtime", "identity", "address", "storage", "model", "protocol", "ledger"),
    *("transport", "config", "tasks", "diagnostics", "verify", "provisioning", "cli"),
)
# `cairn.Task` and its kin are the public names of the package, so whoever imports the package has these two.
PUBLIC = {"cairn.tasks", "cairn.tasks.task"}
NOT_FOR_THE_AGGREGATOR = (
    *("cairn.tasks", "cairn.provisioning", "cairn.verify", "cairn.cli"),
    *("cairn.transport.channel", "cairn.transport.retry"),
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    name_of(path): path
    for package in ("cairn", "aggregator_node", "coordinator", "owner_node")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "v1" not in path.parts
}


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module, ours or not, that an import statement which can run names, anywhere in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= named & set(MODULES) or {node.module}
    return frozenset(found)


def layer_of(module: str) -> str:
    return module.split(".")[1]


def layered(module: str) -> bool:
    return module.startswith("cairn.") and layer_of(module) not in {"__main__", "v1"}


def loaded_with(modules: set[str]) -> set[str]:
    """These modules of ours and every one that importing them imports."""
    loaded: set[str] = set()
    ahead = set(modules)
    while ahead:
        module = ahead.pop()
        loaded.add(module)
        parents = {module.rpartition(".")[0]} & set(MODULES)
        ahead |= ((imports_of(MODULES[module]) & set(MODULES)) | parents) - loaded
    return loaded


def test_every_module_of_cairn_is_in_a_layer() -> None:
    assert {layer_of(module) for module in MODULES if layered(module)} == set(LAYERS)


@pytest.mark.parametrize("module", [module for module in MODULES if layered(module)])
def test_a_module_imports_no_layer_above_its_own(module: str) -> None:
    own = LAYERS.index(layer_of(module))
    above = {
        name
        for name in imports_of(MODULES[module])
        if layered(name) and LAYERS.index(layer_of(name)) > own
    }
    assert above == set()


def test_torch_is_imported_only_where_an_owners_task_runs() -> None:
    importing = {
        module
        for module, path in MODULES.items()
        if {name.split(".")[0] for name in imports_of(path)} & {"torch", "safetensors"}
    }
    assert importing
    for module in importing - {"owner_node.training.worker"}:
        assert module.startswith("cairn.tasks.")
        assert module != "cairn.tasks.loader"


def test_the_aggregator_reaches_no_task_no_verifier_no_command_and_nothing_that_dials() -> None:
    own = {module for module in MODULES if module.startswith("aggregator_node")}
    reached = {
        module for module in loaded_with(own) - PUBLIC if module.startswith(NOT_FOR_THE_AGGREGATOR)
    }
    assert reached == set()


def test_a_package_holds_one_sentence_and_no_code() -> None:
    """So that to import one module of a package is not to import them all."""
    for module, path in MODULES.items():
        if path.name == "__init__.py" and module != "cairn":
            assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1, module
