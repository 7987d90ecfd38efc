"""Why an owner is not counted, in words for the model owner, with the cure. Pure.

For reasons that last: each has the same cure in every round.
"""

from collections import defaultdict
from collections.abc import Iterable

from cairn.protocol.words import reason_word
from cairn.v1 import round_pb2 as pb

BECAUSE: dict["pb.Reason", str] = {
    pb.REASON_NOT_COUNTED: "the owner's task failed or its update was refused; only that owner is told why",
    pb.REASON_FAILURES_SPENT: (
        "the owner was not counted as often as its file allows: its operator has to look into that and run `cairn reset`"
    ),
    pb.REASON_UNKNOWN_TASK: (
        "the owner's file has no task of this name: its operator adds it, or you correct task in the job's file"
    ),
    pb.REASON_SETTING_REFUSED: (
        "the owner's file does not allow one of the numbers in [settings], or the share of the weight that one update may have."
        " Its log says which: change that in the job's file, or ask its operator to allow it"
    ),
    pb.REASON_FLOOR_TOO_LOW: (
        "the owner's file asks for a larger floor: raise floor in the job's file"
    ),
    pb.REASON_UNTRUSTED_COHORT: (
        "the owner's file trusts too few of these owners: raise floor in the job's file, or ask its operator to trust more"
    ),
    pb.REASON_TOO_MANY_ROUNDS: (
        "the owner's file allows fewer rounds of this task (max_rounds): lower rounds in the job's file, or ask its operator to"
        " allow more"
    ),
    pb.REASON_ENCODING_REFUSED: (
        "the owner's file does not allow updates to travel so (encodings): write updates = \"whole\" in the job's file, or ask"
        " its operator to allow it"
    ),
    pb.REASON_RULE_REFUSED: (
        "the owner's file does not allow this rule, optimizer or content (rules, optimizers, contents), or nothing without noise"
        " (max_epsilon), or the rule averages over fewer owners than its floor. Its log says which: choose another, or ask its"
        " operator to allow it"
    ),
    pb.REASON_BUDGET_SPENT: (
        "with this round, all jobs of the task together would tell more than the owner's file allows, of the owner (max_epsilon)"
        " or of one record of its data (private): the last release is the job's last, unless its operator allows more"
    ),
    pb.REASON_SCHEMA_MISMATCH: (
        "the owner's task has a model of other tensors, or could not be loaded. Its log says which: make the job's model by the"
        " task that its operator has approved, or ask for the same task there"
    ),
}


def commonest(exclusions: Iterable[pb.Exclusion]) -> str | None:
    """The owners that were not counted for the reason that the most of them have, that reason and its cure.

    None where there are no exclusions.
    """
    owners: dict[pb.Reason, set[str]] = defaultdict(set)
    for exclusion in exclusions:
        owners[exclusion.reason].add(exclusion.owner)
    if not owners:
        return None
    reason = max(owners, key=lambda each: (len(owners[each]), each in BECAUSE, -each))
    who = ", ".join(sorted(owners[reason]))
    word = reason_word(reason)
    return f"{word} of {who}: {BECAUSE[reason]}" if reason in BECAUSE else f"{word} of {who}"
