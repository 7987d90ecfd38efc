"""Listeners that no node can connect to, or that are no node: each shows itself in its own way."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import grpc

from cairn.identity.names import NodeName
from tests.service.door import Ward


@contextmanager
def node(key: bytes, certificate: bytes, admits: bytes, host: str = "localhost") -> Iterator[str]:
    """A gRPC server under a certificate, which admits what the authority `admits` has issued."""
    server = grpc.server(ThreadPoolExecutor(2))
    credentials = grpc.ssl_server_credentials([(key, certificate)], admits, True)
    port = server.add_secure_port(f"{host}:0", credentials)
    server.start()
    yield f"{host}:{port}"
    server.stop(0.0).wait()


@contextmanager
def of_another_authority(
    ward: Ward, elsewhere: Ward, name: NodeName
) -> Iterator[tuple[str, bytes]]:
    key, certificate = elsewhere.issued(name)
    with node(key, certificate, ward.authority.certificate) as address:
        yield address, ward.issued(name)[1]


@contextmanager
def with_another_certificate(
    ward: Ward, elsewhere: Ward, name: NodeName
) -> Iterator[tuple[str, bytes]]:
    del elsewhere
    key, certificate = ward.issued(name)
    with node(key, certificate, ward.authority.certificate) as address:
        yield address, ward.issued(name)[1]


@contextmanager
def out_of_date(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    del elsewhere
    key, certificate = ward.issued(name, timedelta(minutes=-1))
    with node(key, certificate, ward.authority.certificate) as address:
        yield address, certificate


@contextmanager
def of_another_host(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    del elsewhere
    key, certificate = ward.issued(name)
    with node(key, certificate, ward.authority.certificate, "127.0.0.2") as address:
        yield address, certificate


@contextmanager
def that_does_not_trust_us(
    ward: Ward, elsewhere: Ward, name: NodeName
) -> Iterator[tuple[str, bytes]]:
    key, certificate = ward.issued(name)
    with node(key, certificate, elsewhere.authority.certificate) as address:
        yield address, certificate


@contextmanager
def without_tls(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    del elsewhere
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}", ward.issued(name)[1]
    server.stop(0.0).wait()


@contextmanager
def of_the_web(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    """It answers in plain HTTP."""
    del elsewhere

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 12)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        read_out(connection)

    with program(answer) as address:
        yield address, ward.issued(name)[1]


@contextmanager
def of_the_web_in_tls(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    """It has the right certificate, and speaks no HTTP/2."""
    del elsewhere
    key, certificate = ward.issued(name)
    with in_tls(served(key, certificate, ward.directory)) as address:
        yield address, certificate


@contextmanager
def that_hangs_up(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    """As what passes connections on to nobody does, while the node behind it is not there."""
    del elsewhere
    with program(lambda _: None) as address:
        yield address, ward.issued(name)[1]


@contextmanager
def that_is_not_there(ward: Ward, elsewhere: Ward, name: NodeName) -> Iterator[tuple[str, bytes]]:
    del elsewhere
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"localhost:{port}", ward.issued(name)[1]


def served(key: bytes, certificate: bytes, directory: Path) -> ssl.SSLContext:
    """What a web server serves by: without HTTP/2, and without a look at who comes."""
    files = directory / "web.crt", directory / "web.key"
    files[0].write_bytes(certificate)
    files[1].write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def in_tls(context: ssl.SSLContext) -> Iterator[str]:
    """A program that takes connections in TLS, and says nothing."""

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            read_out(tls)

    with program(answer) as address:
        yield address


def read_out(connection: socket.socket) -> None:
    """Wait until the other side ends it: else what was sent may be lost on the way."""
    while connection.recv(1 << 12):
        pass


@contextmanager
def program(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Something that listens, answers once on each connection and ends it."""

    def answer_all() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_all)
        thread.start()
        # By number: of a name with two addresses gRPC tells the trouble of the last.
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
