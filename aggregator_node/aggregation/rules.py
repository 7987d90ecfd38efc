"""Which module has which rule."""

from aggregator_node.aggregation.bucketed_median import BucketedMedian
from aggregator_node.aggregation.centred_clipping import CentredClipping
from aggregator_node.aggregation.geometric_median import GeometricMedian
from aggregator_node.aggregation.mean import Mean
from aggregator_node.aggregation.multi_krum import MultiKrum
from aggregator_node.aggregation.norm_bounded_mean import NormBoundedMean
from aggregator_node.aggregation.private_mean import PrivateMean
from aggregator_node.aggregation.rule import Rule
from aggregator_node.aggregation.sum import Sum
from aggregator_node.aggregation.trimmed_mean import TrimmedMean
from cairn.v1 import round_pb2 as pb

RULES: dict["pb.Rule", type[Rule]] = {
    pb.RULE_MEAN: Mean,
    pb.RULE_SUM: Sum,
    pb.RULE_NORM_BOUNDED_MEAN: NormBoundedMean,
    pb.RULE_TRIMMED_MEAN: TrimmedMean,
    pb.RULE_BUCKETED_MEDIAN: BucketedMedian,
    pb.RULE_MULTI_KRUM: MultiKrum,
    pb.RULE_GEOMETRIC_MEDIAN: GeometricMedian,
    pb.RULE_CENTRED_CLIPPING: CentredClipping,
    pb.RULE_PRIVATE_MEAN: PrivateMean,
}
