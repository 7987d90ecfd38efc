"""Keeps what this owner's updates in int8 have not said, to be added to the next one.

This is error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847). What is sent is the change
plus the residual, as int8 can say it, and what it cannot say becomes the next residual, in binary32. So over
any number of rounds the updates that were sent add up to the changes that were to be sent, less the last
residual. What was clipped off is no part of it: that was not to be sent.

There is a residual only after an accepted update. It is for one task, one job, one model and one encoding, and is
dropped where one of them changes. It lives in memory: a restart loses one round's correction and no more, and
so does an update of which nobody can say whether it was accepted. bfloat16 needs none: it rounds each element
in proportion to it, where int8 never says the smallest ones of a block.
"""

from dataclasses import dataclass

import numpy as np

from cairn.model.update_encoding import UpdateLayout
from cairn.v1 import round_pb2 as pb
from owner_node.updates.encoder import Change, Residual, keep_remainder


@dataclass(frozen=True)
class Stream:
    """The updates that one residual goes through."""

    task: str
    job: str
    layout: UpdateLayout


class ErrorFeedback:
    """The residual of each task, and the memory in which updates are encoded."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Stream, Residual]] = {}
        self._wire = bytearray()

    def of(self, stream: Stream) -> Residual:
        """What is to be added to the next update. Drops what the task has of another stream."""
        kept, residual = self._kept.get(stream.task, (stream, {}))
        if kept != stream:
            del self._kept[stream.task]
            return {}
        return residual

    def drop(self, stream: Stream) -> None:
        """An update is about to leave: until it is known what became of it, there is no residual."""
        self._kept.pop(stream.task, None)

    def accepted(self, stream: Stream, change: Change, payload: memoryview) -> None:
        """This payload was accepted for the change: keep what it does not say."""
        if stream.layout.encoding != pb.ENCODING_INT8_DELTAS:
            return
        residual = change.residual or {
            segment.run.dtype: np.zeros(segment.run.count, np.float32)
            for segment in stream.layout.segments
            if segment.is_delta
        }
        keep_remainder(stream.layout, change, payload, residual)
        self._kept[stream.task] = stream, residual

    def refused(self, stream: Stream, change: Change) -> None:
        """The update was not accepted: what was to be added to it still is."""
        self._kept[stream.task] = stream, change.residual

    def wire(self, layout: UpdateLayout) -> memoryview:
        """The memory for a payload; the same from round to round, as long as its size is."""
        if len(self._wire) != layout.total_bytes:
            self._wire = bytearray(layout.total_bytes)
        return memoryview(self._wire)
