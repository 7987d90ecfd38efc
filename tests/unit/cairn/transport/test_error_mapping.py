"""How a refusal leaves a node, and what the caller makes of it."""

from typing import Any, NoReturn, cast

import grpc
import pytest
from structlog.testing import capture_logs

from cairn import errors
from cairn.transport.error_mapping import ErrorMapping, unrecorded
from cairn.transport.status import STATUS, translated
from cairn.transport.steps import Call

# What peers of every version read, so it does not follow a class that is renamed.
WORDS = {
    errors.InvalidMessage: "InvalidMessage",
    errors.UpdateRefused: "UpdateRefused",
    errors.CallerNotAllowed: "CallerNotAllowed",
    errors.NotFound: "NotFound",
    errors.WrongState: "WrongState",
    errors.Fenced: "Fenced",
    errors.Conflict: "Conflict",
    errors.LimitExceeded: "TooMuch",
    errors.Unavailable: "Unavailable",
}


class Aborted(grpc.RpcError):
    """A call's end as its caller sees it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self._end = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._end[0]

    def details(self) -> str:
        return self._end[1]

    def trailing_metadata(self) -> Any:
        return self._end[2]


class Context:
    """The part of a gRPC context that a refusal uses; its caller's certificate names nobody."""

    trailing: Any = ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [b"no certificate"]}

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise Aborted(code, details, self.trailing)


def refusal(error: errors.CairnError) -> Aborted:
    """What leaves the node where its handler raises this."""
    call = Call("/a.Service/Method", cast("grpc.ServicerContext", Context()))
    with pytest.raises(Aborted) as aborted, ErrorMapping(unrecorded).around(call):
        raise error
    return aborted.value


def test_every_error_has_a_word_on_the_wire() -> None:
    assert set(WORDS) == set(STATUS)


@pytest.mark.parametrize(("kind", "word"), WORDS.items())
def test_a_refusal_says_in_one_fixed_word_which_error_it_is(
    kind: type[errors.CairnError], word: str
) -> None:
    with capture_logs() as lines:
        aborted = refusal(kind("no"))
    assert dict(aborted.trailing_metadata())["cairn-error"] == word
    assert [line["error"] for line in lines] == [word]


@pytest.mark.parametrize("kind", WORDS)
def test_the_caller_raises_what_the_handler_raised(kind: type[errors.CairnError]) -> None:
    with pytest.raises(errors.CairnError) as raised, translated():
        raise refusal(kind("no"))
    assert type(raised.value) is kind
    assert (str(raised.value), raised.value.reason) == ("no", kind.reason)
