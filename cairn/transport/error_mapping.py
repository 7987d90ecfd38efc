"""Maps our errors to gRPC statuses around every handler, and has every refusal recorded once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc
import structlog

from cairn.errors import CairnError
from cairn.identity.names import NodeName
from cairn.protocol.words import reason_word
from cairn.transport.status import STATUS, wire_name
from cairn.transport.steps import Call
from cairn.transport.watchdog import Late

# Three times as long on the wire, where metadata beyond 8 KiB may be refused.
_SENTENCE_BYTES = 1000

# Is told the caller where it is known, the method, and why.
Refused = Callable[[NodeName | None, str, CairnError], None]

log = structlog.get_logger()


def unrecorded(_node: NodeName | None, _method: str, _error: CairnError) -> None:
    """Leave a refusal to the log."""


class ErrorMapping:
    """Tells `refused` of every refusal, once. A call that ends because its caller does nothing counts as refused."""

    def __init__(self, refused: Refused) -> None:
        self._refused = refused

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        try:
            yield
        except CairnError as error:
            self._refuse(call, error)
        except Late:
            call.context.abort(grpc.StatusCode.CANCELLED, "the request did not come in time")
        except grpc.RpcError:
            raise  # the caller broke off while its stream was read
        except Exception:
            # Else it is context.abort itself, or a cancelled call's end.
            if call.context.is_active():
                log.exception("handler failed", method=call.method)
                why = "the node failed; its own log says why"
                call.context.abort(grpc.StatusCode.INTERNAL, why)
            raise

    def record(self, call: Call, error: CairnError) -> None:
        """A call is refused."""
        node = _caller_if_known(call)
        log.warning(
            "refused",
            method=call.method,
            caller=str(node or "unknown"),
            error=wire_name(type(error)),
            reason=str(error),
        )
        try:
            self._refused(node, call.method, error)
        except Exception:  # what cannot be recorded is refused all the same
            log.exception("a refusal could not be recorded", method=call.method)

    def _refuse(self, call: Call, error: CairnError) -> NoReturn:
        self.record(call, error)
        call.context.set_trailing_metadata(
            (("cairn-error", wire_name(type(error))), ("cairn-reason", reason_word(error.reason)))
        )
        call.context.abort(
            STATUS.get(type(error), grpc.StatusCode.INTERNAL),
            str(error).encode()[:_SENTENCE_BYTES].decode(errors="ignore"),
        )
        raise AssertionError  # abort raises; this tells the type checker


def _caller_if_known(call: Call) -> NodeName | None:
    try:
        return call.node
    except CairnError:
        return None
