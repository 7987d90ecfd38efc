"""A federation's files, what `cairn doctor` says of one of them, and a listener that says what it is told."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from click.testing import CliRunner, Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cairn.cli.doctor import doctor
from cairn.provisioning.create import FederationPlan, write_federation

OWNERS = ("alice", "bob", "carol")
TASKS = """
[tasks.mean]
file = "task.py"
data = "data.csv"
"""


def made(home: Path) -> Path:
    """The files of a federation in which everything is in order, and nobody listens yet."""
    (home / "task.py").write_text("raise RuntimeError('this task must not be run')\n")
    (home / "data.csv").write_text("1,2\n")
    (home / "tasks.toml").write_text(TASKS)
    at = ("localhost:1", "localhost:2", "localhost:3")
    plan = FederationPlan("ward", OWNERS, 3, *at, tasks_file=home / "tasks.toml", data=home)
    write_federation(home / "ward", plan)
    return home / "ward"


def pointed(config: Path, key: str, value: str) -> Path:
    """Give a key of the file another text."""
    text = config.read_text()
    line = re.search(rf'^{key} = "[^"]*"', text, flags=re.MULTILINE)
    assert line
    config.write_text(text.replace(line[0], f'{key} = "{value}"', 1))
    return config


@dataclass(frozen=True)
class Examined:
    """What the command said, and its exit code."""

    exit_code: int
    findings: list[dict[str, str]]

    def of(self, check: str, grade: str) -> list[str]:
        return [
            found["sentence"]
            for found in self.findings
            if (found["check"], found["grade"]) == (check, grade)
        ]

    def only(self, check: str, grade: str) -> str:
        (sentence,) = self.of(check, grade)
        return sentence

    def faults(self) -> list[str]:
        return [found["check"] for found in self.findings if found["grade"] == "fault"]


def called(*arguments: str | Path) -> Result:
    return CliRunner().invoke(doctor, [str(argument) for argument in arguments])


def examined(config: Path, *options: str) -> Examined:
    result = called(config, "--json", *options)
    assert result.exit_code in {0, 1}, result.output
    values = json.loads(result.stdout)
    assert values["file"] == str(config)
    found = Examined(result.exit_code, values["findings"])
    assert values["faults"] == len(found.faults())
    assert (found.exit_code == 1) == bool(found.faults())
    return found


class Says(health.HealthServicer):
    """A health service with metadata of its own beside its answer."""

    def __init__(self, *pairs: tuple[str, str], serving: bool = True) -> None:
        super().__init__()
        self._pairs = pairs
        served = health_pb2.HealthCheckResponse
        self.set("", served.SERVING if serving else served.NOT_SERVING)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's
        context.set_trailing_metadata(self._pairs)
        return super().Check(request, context)


class _Methods(grpc.ServerInterceptor):
    """Notes what is called, whether there is such a method or not."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self.called.append(handler_call_details.method)
        return continuation(handler_call_details)


@contextmanager
def standing(
    home: Path, service: health.HealthServicer, at: str = "localhost"
) -> Iterator[tuple[int, list[str]]]:
    """Listen under the identity in `home`: yields the port, and the methods that were called."""
    methods = _Methods()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[methods])
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    files = [(home / name).read_bytes() for name in ("node.key", "node.crt", "authority.crt")]
    credentials = grpc.ssl_server_credentials([(files[0], files[1])], files[2], True)
    port = server.add_secure_port(f"{at}:0", credentials)
    server.start()
    try:
        yield port, methods.called
    finally:
        server.stop(0).wait()
