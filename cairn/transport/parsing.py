"""Reads the messages that a node is sent, within a limit."""

from typing import Any

from cairn.errors import InvalidMessage, LimitExceeded
from cairn.model.schema import CHUNK_BYTES
from cairn.protocol.limits import MAX_JOB_SPEC_BYTES
from cairn.transport import framing

MESSAGE_BYTES = CHUNK_BYTES + (1 << 18)  # a chunk and its frame: no model is one message
# A job's specification, and what it comes with.
JOB_MESSAGE_BYTES = MAX_JOB_SPEC_BYTES + MESSAGE_BYTES
_LARGE = {"/cairn.v1.ReleaseService/RegisterJob"}  # a job's schema; its server bounds it


def parsing(method: str, generated: framing.Reader) -> framing.Reader:
    """The reader of a method's messages; it raises LimitExceeded and InvalidMessage."""
    reader = framing.request_reader(method, generated)

    def parsed(raw: bytes) -> Any:
        if len(raw) > MESSAGE_BYTES and method not in _LARGE:
            raise LimitExceeded(f"a message of this method has {MESSAGE_BYTES} bytes at most")
        try:
            return reader(raw)
        except Exception as error:
            raise InvalidMessage("the bytes are not the message that this method takes") from error

    return parsed
