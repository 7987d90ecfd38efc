"""The folders of a package are layers, and what needs PyTorch or dials stands apart: read off the code itself."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A layer imports what stands before it, and itself; those named in one string do not import each other.
LAYERS = {
    "cairn": (
        *("errors", "runtime", "identity", "address", "storage", "model", "protocol", "ledger"),
        *("transport", "config", "tasks", "diagnostics", "verify", "provisioning", "cli"),
    ),
    "aggregator_node": (
        *("aggregation storage events", "admission optimizers", "rounds"),
        *("memory_locking roster idle_shutdown event_log", "hardening settings", "diagnostics"),
        *("intake_service record_service release_service", "node", "cli"),
    ),
    "coordinator": (
        "best_release causes doubtful_choices groups",
        "schedule backoff statistics initial_model needed_owners owner_sessions release_download",
        "aggregator_client invitation_service events run_directory settings",
        *(
            "best_watch cohort_selection ledger_mirror console diagnostics",
            "job",
            "standing",
            "round_runner",
            "job_runner",
        ),
        *("node", "api cli"),
    ),
}
# `cairn.Task` and its kin are the public names of the package, so whoever imports the package has these.
PUBLIC = {
    "cairn.tasks",
    *(f"cairn.tasks.{name}" for name in ("task", "fedprox", "patterns", "private", "scaffold")),
}
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


def part_of(module: str) -> str:
    """The folder below its package, or the module itself, that a module belongs to."""
    return module.split(".")[1]


def parts_of(package: str, modules: Iterable[str]) -> set[str]:
    """The parts of a package that these modules belong to."""
    own = (module for module in modules if module.startswith(f"{package}."))
    return {part_of(module) for module in own} - {"__main__", "v1"}


LAYERED = [
    (package, module) for package in LAYERS for module in MODULES if parts_of(package, [module])
]


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


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_is_in_one_layer(package: str) -> None:
    named = [part for layer in LAYERS[package] for part in layer.split()]
    assert sorted(named) == sorted(parts_of(package, MODULES))


@pytest.mark.parametrize(("package", "module"), LAYERED)
def test_a_module_imports_what_stands_below_it_and_nothing_beside_it(
    package: str, module: str
) -> None:
    allowed: set[str] = set()
    for layer in LAYERS[package]:
        if part_of(module) in layer.split():
            break
        allowed |= set(layer.split())
    imported = parts_of(package, imports_of(MODULES[module]))
    assert imported - {part_of(module)} <= allowed


def test_torch_is_imported_only_where_an_owners_task_runs_or_a_model_owner_calls_from_python() -> (
    None
):
    importing = {
        module
        for module, path in MODULES.items()
        if {name.split(".")[0] for name in imports_of(path)} & {"torch", "safetensors"}
    }
    assert importing
    for module in importing - {"owner_node.training.worker"}:
        assert module.startswith(("cairn.tasks.", "coordinator.api."))
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
