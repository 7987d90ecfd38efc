"""Words of peers and of files that would command a terminal or forge a line, in what every command prints."""

import json
import os
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cairn.model.safetensors_writer import write_model
from cairn.model.schema import Schema, TensorSpec
from cairn.protocol.statements import STATEMENT, envelope, sign
from cairn.v1 import round_pb2 as pb
from tests.hostile.offline import KEY_TEXT
from tests.unit.cairn.cli.examination import made, pointed
from tests.unit.cairn.verify.recorded import (
    KEY,
    Chain,
    Federation,
    in_base64,
    write_database,
    write_json,
)
from tests.warm.start import BIN, run

SECONDS = 60
FORGED = "Finished. Model: gone"
WORDS = f"\x1b[2J\x1b]0;owned\x07no\r\n{FORGED}\u202e\u2028\x9b31m\x7f"
JOB = """
name = "tumours"
task = "mean"
model = "model.safetensors"
rounds = 1
owners = ["alice", "bob", "carol"]
floor = 3
weighting = "equal"
evaluate = false
round_deadline_seconds = 10
gather_seconds = 1
"""


class Shouting(grpc.GenericRpcHandler):
    """Refuses every call with the words; as one of our own errors where it names one."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def service(self, handler_call_details: Any) -> Any:  # noqa: ARG002 - whatever is called
        def shout(_requests: Any, context: grpc.ServicerContext) -> None:
            if self._kind:
                context.set_trailing_metadata((("cairn-error", self._kind),))
                context.abort(grpc.StatusCode.PERMISSION_DENIED, WORDS)
            context.abort(grpc.StatusCode.UNAVAILABLE, WORDS)

        return grpc.stream_stream_rpc_method_handler(shout)


@contextmanager
def shouting(home: Path, kind: str) -> Iterator[str]:
    """Listen under the identity in `home`; yields the address."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Shouting(kind),))
    key, certificate, root = (
        (home / n).read_bytes() for n in ("node.key", "node.crt", "authority.crt")
    )
    port = server.add_secure_port(
        "localhost:0", grpc.ssl_server_credentials([(key, certificate)], root, True)
    )
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(0).wait()


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    ward = made(tmp_path)
    schema = Schema.of([TensorSpec("weight", "F32", (2,))])
    write_model(tmp_path / "model.safetensors", schema, np.ones(2, "<f4").tobytes())
    (tmp_path / "job.toml").write_text(JOB)
    return ward


def ran(*command: str | Path) -> tuple[int, bytes]:
    """The exit code, and every byte that a terminal would have been sent."""
    words: list[str | Path] = [BIN / str(command[0]), *command[1:]]
    done = run(words, env={**os.environ, "CAIRN_LOG": "text"}, merged=True, timeout=SECONDS)
    return done.returncode, done.stdout


def assert_fit_for_a_terminal(output: bytes, *, shown: str = r"\x1b[2J") -> None:
    """Nothing in it commands a terminal, no line is a peer's own, and the words are there in escapes."""
    text = output.decode()
    odd = {c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}}
    assert not odd, (odd, text)
    assert not re.search(f"^{FORGED}", text, flags=re.MULTILINE), text
    assert shown in text, text


@pytest.mark.parametrize("kind", ["CallerNotAllowed", ""])
def test_a_node_prints_no_byte_that_a_peer_chose(ward: Path, tmp_path: Path, kind: str) -> None:
    with shouting(ward / "aggregator", kind) as aggregator:
        for name in ("alice", "coordinator"):
            pointed(ward / f"{name}.toml", "aggregator", aggregator)
        config = ward / "coordinator.toml"
        config.write_text(f"patience_seconds = 1\n{config.read_text()}")
        code, output = ran(
            "coordinator", "run", tmp_path / "job.toml", "--config", config, "--out", tmp_path / "o"
        )
        assert code == 1, output.decode()
        assert b"error: " in output
        assert_fit_for_a_terminal(output)
        for command in ("health", "doctor"):
            arguments = (["--config"] if command == "health" else []) + [str(ward / "alice.toml")]
            code, output = ran("cairn", command, *arguments)
            assert code == (2 if command == "health" else 1), output.decode()
            assert_fit_for_a_terminal(output)
    with shouting(ward / "coordinator", kind) as coordinator:
        config = pointed(ward / "alice.toml", "coordinator", coordinator)
        config.write_text(f"patience_seconds = 1\n{config.read_text()}")
        code, output = ran("owner-node", "--config", config, "--once")
        assert code == 1, output.decode()
        assert_fit_for_a_terminal(output)


def signed_with_words() -> pb.Signed:
    statement = pb.ReleaseStatement.FromString(Federation().statements[2].body)
    statement.job = WORDS
    statement.software = WORDS
    statement.exclusions[0].owner = WORDS
    return sign(KEY, STATEMENT, statement.SerializeToString())


def test_verify_and_ledger_print_no_byte_that_a_file_chose(tmp_path: Path) -> None:
    write_json(tmp_path / "release.json", envelope(signed_with_words()))
    chain = Chain()
    chain.add("job", job=WORDS, groups=[[WORDS, "a"], ["b", "c"]])
    chain.add("open", job=WORDS, cohort=[WORDS, "b"], **{WORDS: WORDS})
    chain.add(WORDS, reason=WORDS)
    chain.add("released", job=WORDS, counted=False, statement=in_base64(signed_with_words()))
    for name in ("aggregator.sqlite", "owner.sqlite"):
        write_database(tmp_path / name, chain.rows, chain.rows)
    for path in ("release.json", "aggregator.sqlite", "owner.sqlite"):
        code, output = ran("cairn", "verify", tmp_path / path, "--key", KEY_TEXT)
        assert code == (0 if path == "release.json" else 1), output.decode()
        assert_fit_for_a_terminal(output)
    for options in ([], ["--full"], ["--refusals"]):
        code, output = ran("cairn", "ledger", tmp_path / "aggregator.sqlite", *options)
        assert code == 0
        assert_fit_for_a_terminal(output, shown=r"\u001b[2J")
        assert json.loads(output.splitlines()[2])["reason"] == WORDS


def test_a_key_of_a_settings_file_is_shown_in_escapes(ward: Path) -> None:
    config = ward / "alice.toml"
    escaped = WORDS.encode("unicode_escape").decode().replace("\\x", "\\u00")
    config.write_text(f'"{escaped}" = 1\n{config.read_text()}')
    for command in (("cairn", "doctor", config), ("owner-node", "--config", config)):
        code, output = ran(*command)
        assert code in {1, 2}
        assert_fit_for_a_terminal(output)


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json", "aggregator.sqlite"])
def test_a_name_in_a_file_is_shown_in_escapes(ward: Path, tmp_path: Path, name: str) -> None:
    arguments = ("run", tmp_path / "job.toml", "--config", ward / "coordinator.toml")
    if name == "model.safetensors":
        header = json.dumps({WORDS: {}}).encode()
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header)
        code, output = ran("coordinator", *arguments, "--out", tmp_path / "out")
    elif name == "checkpoint.json":
        (tmp_path / "out").mkdir()
        write_json(tmp_path / "out" / name, {"job": "j", "job_digest": "0", WORDS: 1})
        code, output = ran("coordinator", *arguments, "--out", tmp_path / "out")
    else:
        write_database(tmp_path / name, [])
        with closing(sqlite3.connect(tmp_path / name)) as db, db:
            db.execute("PRAGMA writable_schema = ON")
            broken = ("table", WORDS, WORDS, 2, f"CREATE TABLE {WORDS}")
            db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", broken)
        code, output = ran("cairn", "ledger", tmp_path / name)
    assert code == 2
    assert_fit_for_a_terminal(output)


def test_a_certificate_that_holds_a_command_is_shown_in_escapes(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    hosts = [
        x509.UniformResourceIdentifier("spiffe://ward/owner/alice"),
        x509.DNSName(f"\x1b[2J\r\n{FORGED}"),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path / "node.crt"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    code, output = ran("cairn", "identity", path)
    assert code == 0, output
    assert_fit_for_a_terminal(output)
