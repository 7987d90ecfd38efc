"""What the parts may know of each other, and what the messages can carry: read off the code itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from cairn.identity.names import Role
from cairn.transport.access import ACCESS, LONG_CALLS
from cairn.v1 import aggregator_pb2, coordinator_pb2

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROLES = ("aggregator_node", "coordinator", "owner_node")
PACKAGES = ("cairn", *ROLES)
PURE = [
    "aggregator_node/aggregation/block_mean.py",
    "aggregator_node/aggregation/bucketed_median.py",
    "aggregator_node/aggregation/centred_clipping.py",
    "aggregator_node/aggregation/discrete_gaussian.py",
    "aggregator_node/aggregation/distances.py",
    "aggregator_node/aggregation/geometric_median.py",
    "aggregator_node/aggregation/held_updates.py",
    "aggregator_node/aggregation/integer_sums.py",
    "aggregator_node/aggregation/mean.py",
    "aggregator_node/aggregation/metrics.py",
    "aggregator_node/aggregation/multi_krum.py",
    "aggregator_node/aggregation/norm_bounded_mean.py",
    "aggregator_node/aggregation/private_mean.py",
    "aggregator_node/aggregation/released.py",
    "aggregator_node/aggregation/sorted_updates.py",
    "aggregator_node/aggregation/sorting.py",
    "aggregator_node/aggregation/sum.py",
    "aggregator_node/aggregation/trimmed_mean.py",
    "aggregator_node/aggregation/weighted_updates.py",
    "aggregator_node/aggregation/rule.py",
    "aggregator_node/optimizers/sgd.py",
    "aggregator_node/optimizers/adagrad.py",
    "aggregator_node/optimizers/adam.py",
    "aggregator_node/optimizers/yogi.py",
    "aggregator_node/optimizers/step.py",
    "aggregator_node/rounds/results.py",
    "aggregator_node/aggregation/exact_rounding.py",
    "aggregator_node/aggregation/exact_sum.py",
    "aggregator_node/aggregation/memory_shares.py",
    "aggregator_node/admission.py",
    "aggregator_node/events.py",
    "aggregator_node/rounds/upload.py",
    "aggregator_node/rounds/state.py",
    "aggregator_node/aggregation/weight_caps.py",
    "cairn/transport/access.py",
    "cairn/model/update_encoding.py",
    "cairn/model/segments.py",
    "cairn/errors.py",
    "cairn/protocol/messages.py",
    "cairn/protocol/cohorts.py",
    "cairn/protocol/privacy.py",
    "cairn/protocol/reasons.py",
    "cairn/config.py",
    "cairn/protocol/statements.py",
    "cairn/tasks/task.py",
    "cairn/tasks/patterns.py",
    "cairn/model/schema.py",
    "cairn/model/validation.py",
    "cairn/verify/ledger.py",
    "cairn/verify/owner.py",
    "cairn/verify/privacy.py",
    "cairn/verify/run.py",
    "cairn/verify/sent.py",
    "coordinator/schedule.py",
    "coordinator/events.py",
    "coordinator/backoff.py",
    "coordinator/groups.py",
    "owner_node/records/budgets.py",
    "owner_node/records/kept_rounds.py",
    "owner_node/records/privacy_spent.py",
    "owner_node/records/private_steps.py",
    "owner_node/updates/encoder.py",
    "owner_node/updates/prepare.py",
    "owner_node/invitation.py",
    "owner_node/policy.py",
    "owner_node/task_rules.py",
    "owner_node/privacy_limit.py",
]
EXECUTES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.jit.load",
    "np.load",
    "numpy.load",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
}

# Every field of bytes that a coordinator can receive, and why it is no tensor.
BYTES_A_COORDINATOR_RECEIVES = {
    "cairn.v1.CollectReleaseResponse.chunk": "the release: the only tensors there are",
    "cairn.v1.FetchModelRequest.digest": "32 bytes that an owner asks for a model by",
    "cairn.v1.LedgerEntry.body": "canonical JSON of names, numbers and digests",
    "cairn.v1.LedgerEntry.head": "32 bytes of SHA-256",
    "cairn.v1.Signed.body": "a manifest, a receipt or a statement; see below what these hold",
    "cairn.v1.Signed.signature": "64 bytes of Ed25519",
}
# What the body of a Signed can hold, and of these what a coordinator is ever sent.
SIGNED_FOR_COORDINATORS = (
    "cairn.v1.RoundManifest",
    "cairn.v1.ReleaseStatement",
    "cairn.v1.LedgerHead",
)
# Its bytes: digests and a nonce of 32 bytes, each checked (cairn/protocol/messages.py, cairn/protocol/statements.py).
# The commitments are digests over 32 random bytes that only the owner is given, and are sorted.
BYTES_IN_SIGNED_BODIES = {
    "cairn.v1.RoundManifest.job_digest",
    "cairn.v1.RoundManifest.base_digest",
    "cairn.v1.RoundManifest.previous_release_digest",
    "cairn.v1.RoundManifest.nonce",
    "cairn.v1.RoundManifest.ledger_head",
    "cairn.v1.RoundManifest.draw_commitment",
    "cairn.v1.ReleaseStatement.manifest_digest",
    "cairn.v1.ReleaseStatement.release_digest",
    "cairn.v1.ReleaseStatement.base_digest",
    "cairn.v1.ReleaseStatement.ledger_head",
    "cairn.v1.ReleaseStatement.commitments",
    "cairn.v1.ReleaseStatement.draw_seed",
    "cairn.v1.LedgerHead.head",
}
# Everything repeated that a coordinator can receive: nothing with a value for each owner.
REPEATED_A_COORDINATOR_RECEIVES = {
    "cairn.v1.Aggregation.optimizer_numbers",  # the job's own
    "cairn.v1.Aggregation.rule_numbers",  # the job's own
    "cairn.v1.ListEntriesResponse.entries",
    "cairn.v1.ReleaseStatement.commitments",
    "cairn.v1.ReleaseStatement.exclusions",
    "cairn.v1.ReleaseStatement.metrics",
    "cairn.v1.RoundManifest.cohort",
    "cairn.v1.WatchRoundResponse.exclusions",
}


def source_files(*packages: str) -> list[Path]:
    return sorted(
        path
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if "v1" not in path.parts
    )


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import statement that can run, anywhere in it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def top(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def methods() -> dict[str, MethodDescriptor]:
    found = {}
    for file in (aggregator_pb2.DESCRIPTOR, coordinator_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            for method in service.methods:
                found[f"/{service.full_name}/{method.name}"] = method
    return found


def received_by_coordinators() -> Iterator[Descriptor]:
    """The requests of what a coordinator serves, and the responses to what it may call."""
    for path, method in methods().items():
        if method.containing_service.name == "InvitationService":
            yield method.input_type
        elif Role.COORDINATOR in ACCESS[path]:
            yield method.output_type


def fields_below(message: Descriptor, seen: set[str] | None = None) -> Iterator[FieldDescriptor]:
    seen = set() if seen is None else seen
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields_below(field.message_type, seen)


def signed_bodies() -> list[Descriptor]:
    pool = aggregator_pb2.DESCRIPTOR.pool
    return [pool.FindMessageTypeByName(name) for name in SIGNED_FOR_COORDINATORS]


def callers_by_contract() -> dict[str, frozenset[Role]]:
    """Who may call each RPC by its comment in the contract: 'The caller must be …'."""
    found = {}
    for path in sorted((ROOT / "protos").rglob("*.proto")):
        service, comment = "", ""
        for line in path.read_text().splitlines():
            if opened := re.match(r"service (\w+)", line):
                service = opened[1]
            if commented := re.match(r" *// ?(.*)", line):
                comment += f"{commented[1]} "
            elif rpc := re.match(r" *rpc (\w+)", line):
                sentence = re.search(r"The caller must be ([^.;]*)", comment)
                assert sentence, f"{rpc[1]} does not say who may call it"
                words = set(re.findall(r"owner|coordinator", sentence[1]))
                found[f"/cairn.v1.{service}/{rpc[1]}"] = frozenset(Role(word) for word in words)
                comment = ""
            else:
                comment = ""
    return found


@pytest.mark.parametrize("role", ROLES)
def test_a_role_imports_cairn_and_itself_and_no_other_role(role: str) -> None:
    others = set(ROLES) - {role}
    for path in source_files(role):
        assert not {top(name) for name in imports_of(path)} & others, path


def test_what_all_share_imports_no_role() -> None:
    for path in source_files("cairn"):
        assert not {top(name) for name in imports_of(path)} & set(ROLES), path


@pytest.mark.parametrize("file", PURE)
def test_a_pure_module_imports_no_network_no_process_and_no_clock(file: str) -> None:
    names = imports_of(ROOT / file)
    impure = {
        "grpc",
        "grpc_health",
        "socket",
        "subprocess",
        "threading",
        "time",
        "sqlite3",
        "torch",
    }
    assert not {top(name) for name in names} & impure
    assert not names & {
        "cairn.transport.server",
        "cairn.runtime.process",
        "cairn.runtime.clock",
        "cairn.v1.aggregator_pb2_grpc",
    }


def test_only_services_clients_and_the_transport_kit_import_grpc() -> None:
    speak = {path for path in source_files(*PACKAGES) if "grpc" in imports_of(path)}
    for path in speak - {
        ROOT / "cairn/transport/error_mapping.py",
        ROOT / "cairn/transport/interceptor.py",
        ROOT / "cairn/transport/channel.py",
        ROOT / "cairn/transport/server.py",
        ROOT / "cairn/transport/status.py",
        ROOT / "cairn/transport/steps.py",
    }:
        assert path.stem.endswith(("_service", "_client")), path


def test_the_aggregator_imports_no_torch_and_nothing_that_unpickles() -> None:
    for path in source_files("aggregator_node"):
        assert not {top(name) for name in imports_of(path)} & {"torch", "safetensors", *EXECUTES}


@pytest.mark.parametrize("path", source_files(*PACKAGES), ids=lambda path: path.stem)
def test_no_module_can_execute_what_arrives(path: Path) -> None:
    assert not {top(name) for name in imports_of(path)} & EXECUTES
    calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not {ast.unparse(function) for function in calls} & FORBIDDEN_CALLS


def test_a_module_is_imported_by_name_only_where_a_person_named_it() -> None:
    """An import path never comes from the wire: they import by name from a file or a table."""
    importing = {
        path.relative_to(ROOT).as_posix()
        for path in source_files(*PACKAGES)
        if "importlib" in {top(name) for name in imports_of(path) - {"importlib.resources"}}
    }
    assert importing == {
        "cairn/__init__.py",
        "cairn/cli/main.py",
        "cairn/cli/doctor.py",
        "cairn/cli/reset.py",
        "cairn/tasks/loader.py",
    }


def test_only_the_aggregator_starts_its_process_anew_and_with_its_own_arguments() -> None:
    """So that what it frees is overwritten; the program and its arguments stay what a person typed."""
    replacing = {
        (path.relative_to(ROOT).as_posix(), ast.unparse(call))
        for path in source_files(*PACKAGES)
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("os.exec")
    }
    call = "os.execve(sys.executable, sys.orig_argv, os.environ | wanted)"
    assert replacing == {("aggregator_node/hardening.py", call)}


def test_every_rpc_is_in_the_access_table_and_the_table_names_no_other() -> None:
    health = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    assert set(ACCESS) == set(methods()) | health
    assert set(LONG_CALLS) <= set(ACCESS)


def test_the_access_table_says_what_the_contract_says() -> None:
    assert callers_by_contract() == {path: ACCESS[path] for path in methods()}


def test_streams_run_apart_from_short_calls() -> None:
    for path, method in methods().items():
        streams = method.client_streaming or method.server_streaming
        assert streams == (path in LONG_CALLS), path


def test_the_only_tensors_that_can_reach_a_coordinator_are_those_of_the_release() -> None:
    received = {
        field.full_name
        for message in received_by_coordinators()
        for field in fields_below(message)
        if field.type == FieldDescriptor.TYPE_BYTES
    }
    assert received == set(BYTES_A_COORDINATOR_RECEIVES)
    chunks = {name for name in received if name.endswith(".chunk")}
    assert chunks == {"cairn.v1.CollectReleaseResponse.chunk"}


def test_what_is_signed_for_coordinators_holds_digests_and_no_tensors() -> None:
    signed = {
        field.full_name
        for message in signed_bodies()
        for field in fields_below(message)
        if field.type == FieldDescriptor.TYPE_BYTES
    }
    assert signed == BYTES_IN_SIGNED_BODIES


def test_a_coordinator_receives_nothing_for_each_owner_but_a_reason() -> None:
    messages = [*received_by_coordinators(), *signed_bodies()]
    fields = {f.full_name: f for message in messages for f in fields_below(message)}
    repeated = {name for name, field in fields.items() if field.is_repeated}
    assert repeated == REPEATED_A_COORDINATOR_RECEIVES
    for name in repeated:
        message = fields[name].message_type
        if message is not None and "owner" in message.fields_by_name:
            assert message.full_name == "cairn.v1.Exclusion"
    exclusion = fields["cairn.v1.WatchRoundResponse.exclusions"].message_type
    assert exclusion is not None
    kinds = {field.name: field.type for field in exclusion.fields}
    assert kinds == {"owner": FieldDescriptor.TYPE_STRING, "reason": FieldDescriptor.TYPE_ENUM}


def test_a_coordinator_receives_no_number_of_one_owner() -> None:
    """The only real numbers are averaged metrics, the aggregator's largest share and those that follow from the job.

    What a private job has told follows from its numbers and from how many releases there were.
    """
    messages = [*received_by_coordinators(), *signed_bodies()]
    real = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}
    found = {f.full_name for m in messages for f in fields_below(m) if f.type in real}
    assert found == {
        "cairn.v1.Aggregation.OptimizerNumbersEntry.value",
        "cairn.v1.Aggregation.RuleNumbersEntry.value",
        "cairn.v1.Privacy.delta",
        "cairn.v1.Privacy.epsilon",
        "cairn.v1.ReleaseStatement.MetricsEntry.value",
        "cairn.v1.RoundManifest.largest_share",
    }


def test_no_rpc_hands_a_coordinator_a_receipt_or_an_update() -> None:
    names = {message.full_name for message in received_by_coordinators()}
    below = {
        field.message_type.full_name
        for message in received_by_coordinators()
        for field in fields_below(message)
        if field.message_type is not None
    }
    forbidden = {"Receipt", "UpdateHeader", "UpdateCommit", "SubmitUpdateRequest"}
    assert not {name.rpartition(".")[2] for name in names | below} & forbidden


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after the statement."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("node", ["aggregator_node.node", "coordinator.node", "owner_node.node"])
def test_no_nodes_own_process_imports_torch(node: str) -> None:
    loaded = loaded_by(f"import {node}")
    assert "grpc" in loaded
    assert not loaded & {"torch", "safetensors"}


@pytest.mark.parametrize("command", ["aggregator_node", "coordinator", "owner_node", "cairn"])
def test_grpc_is_told_to_be_quiet_before_a_command_imports_it(command: str) -> None:
    """It reads its environment once, when it is imported, and would write to a node's stderr."""
    statement = f"import {command}.cli, os; assert os.environ['GRPC_VERBOSITY'] == 'NONE'"
    assert "grpc" not in loaded_by(statement)


HELPS = {
    ("cairn",): [
        "demo",
        "doctor",
        "health",
        "identity",
        "init",
        "ledger",
        "request",
        "sign",
        "try",
        "verify",
    ],
    ("aggregator-node",): ["--config", "--once", "Exit codes"],
    ("owner-node",): ["--config", "--once", "Exit codes"],
    ("coordinator",): ["run"],
    ("coordinator", "run"): ["--config", "--out", "--initial-model", "--rounds", "Exit codes"],
}


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_answers_at_once_and_lists_what_there_is(command: tuple[str, ...]) -> None:
    program = BIN / command[0]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", program, *command[1:], "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "grpc", "pydantic", "numpy", "cryptography"}
    for word in HELPS[command]:
        assert word in done.stdout


@pytest.mark.parametrize("name", HELPS["cairn",])
def test_the_help_of_every_command_of_cairn_answers_without_torch_and_grpc(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", BIN / "cairn", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "sklearn"}
    assert done.stdout.startswith(f"Usage: cairn {name}")
