"""Which module has which rule."""

from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.rule import Rule
from cairn.v1 import round_pb2 as pb

RULES: dict["pb.Rule", type[Rule]] = {pb.RULE_MEAN: Mean}
