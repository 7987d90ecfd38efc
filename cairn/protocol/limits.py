"""The limits that owners and aggregator agree on."""

NAME_PATTERN = (
    "[a-z0-9][a-z0-9._-]{0,62}"  # of a job and of a task; no node is called otherwise either
)
MIN_COHORT = 2  # an average of one is that one's update
MAX_COHORT = 1024
MAX_EXAMPLES = (1 << 31) - 1
LARGEST_SHARE = 0.5  # of the total weight, for one update: with more it alone decides the mean
MAX_METRICS = 64
MAX_JOB_SPEC_BYTES = 16 << 20  # the one message that grows with the number of tensors
MAX_METRIC_NAME_BYTES = 64
MAX_ROUND_SECONDS = 7 * 24 * 3600  # gRPC wants a deadline for every call: this, if nothing less
