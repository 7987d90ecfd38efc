"""Adds updates that lie whole in memory to a mean, read as the aggregator reads what was pushed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator_node.aggregation.exact_sum import BLOCK
from aggregator_node.aggregation.rule import Rule
from cairn.model.schema import Schema
from cairn.model.update_encoding import UpdateLayout, decoded
from cairn.runtime.buffer import Buffer
from cairn.v1 import round_pb2 as pb


def add_whole(rule: Rule, schema: Schema, payload: Buffer, weight: int) -> None:
    layout, scratch = UpdateLayout(schema, pb.ENCODING_WHOLE), np.empty(BLOCK)

    def read(number: int, block: slice) -> tuple[NDArray[Any], int]:
        part = layout.segments[number]
        return decoded(part, payload, block, scratch), part.significant_bits

    rule.add_blocks(read, weight)
