"""Decides what of a trained round leaves this site: clipped, encoded, and without what may not leave.

Pure but for the salt.
"""

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cairn.errors import UpdateRefused
from cairn.model.schema import DIGEST_BYTES
from cairn.model.update_encoding import UpdateLayout
from cairn.model.validation import ANY_FINITE, check_values
from cairn.v1 import round_pb2 as pb
from owner_node.invitation import Declined, Invited
from owner_node.records.history import Pushed
from owner_node.training.supervisor import Trained
from owner_node.updates.clipping import clip
from owner_node.updates.encoder import Change, Residual, encode, length
from owner_node.updates.error_feedback import ErrorFeedback, Stream


@dataclass(frozen=True)
class DisclosureRules:
    """What may leave of a task: the metrics by name, and how far an update may be from its base.

    A gradient may be as long as an update may be far.
    """

    metrics: frozenset[str] = frozenset()
    clip: float | None = None


@dataclass(frozen=True)
class OutgoingUpdate:
    """An update as it leaves. `change` is what its payload says, where that is in deltas."""

    payload: memoryview
    pushed: Pushed
    dropped_metrics: tuple[str, ...]
    clipped: bool
    change: Change | None


def needs_base(invited: Invited, rules: DisclosureRules) -> bool:
    """Whether what leaves is made of the update and its base, which must then outlive the training."""
    if invited.manifest.aggregation.content != pb.CONTENT_WEIGHTS:
        return False
    return invited.manifest.encoding != pb.ENCODING_WHOLE or rules.clip is not None


def rules_beside(
    invited: Invited,
    rules: DisclosureRules,
    reported: Mapping[str, float],
    before: frozenset[str] | None,
) -> DisclosureRules:
    """The rules for what a task reports now, where it reported the metrics `before` the first time.

    Which metrics leave is the same in every round, or it would tell of the data. Raises Declined where one is
    missing; one that is new does not leave. None leaves for a private job: no noise is added to them.
    """
    if invited.manifest.aggregation.is_private:
        return replace(rules, metrics=frozenset())
    if before is None:
        return rules
    allowed = rules.metrics & before
    if missing := sorted(allowed - reported.keys()):
        raise Declined(
            f"the task reports no finite value of its metric {missing[0]}, which it reported before",
            pb.REASON_TASK_FAILED,
        )
    return replace(rules, metrics=allowed)


def stream_of(invited: Invited) -> Stream:
    job = invited.job
    return Stream(job.task, job.name, UpdateLayout(job.schema, invited.manifest.encoding))


def prepare_update(
    invited: Invited,
    base: memoryview,
    trained: Trained,
    rules: DisclosureRules,
    feedback: ErrorFeedback,
    decided: Callable[[memoryview], object],
) -> OutgoingUpdate:
    """Clip the update, encode it and drop what may not leave.

    A whole update is clipped in place and leaves from where it is. The base is looked at only where
    `needs_base` says so. `decided` is told the payload before it is hashed. Raises Declined for a value
    that is NaN or infinite, and for a change that its encoding cannot say.
    """
    stream, payload, digest = stream_of(invited), trained.payload, b""
    clipped, change = False, None
    if invited.manifest.trains:
        try:
            if stream.layout.encoding == pb.ENCODING_WHOLE:
                check_values(stream.layout.schema, payload, ANY_FINITE)
                if rules.clip is not None:
                    start = base if needs_base(invited, rules) else None
                    clipped = clip(stream.layout.schema, start, payload, rules.clip)
            else:
                change = _change(stream.layout, base, trained, rules, feedback.of(stream))
                clipped, payload = change.factor < 1, feedback.wire(stream.layout)
                encode(stream.layout, change, payload)
        except UpdateRefused as error:
            raise Declined(f"after training the {error}", error.reason) from None
        decided(payload)
        digest = stream.layout.digest(payload)
    metrics = {name: value for name, value in trained.metrics.items() if name in rules.metrics}
    dropped = tuple(sorted(trained.metrics.keys() - metrics.keys()))
    pushed = Pushed(digest, trained.examples, metrics, salt=secrets.token_bytes(DIGEST_BYTES))
    return OutgoingUpdate(payload, pushed, dropped, clipped, change)


def _change(
    layout: UpdateLayout,
    base: memoryview,
    trained: Trained,
    rules: DisclosureRules,
    residual: Residual,
) -> Change:
    change = Change(base, trained.payload, residual)
    if rules.clip is None:
        return change
    # A length that is none is left as it is: its change is refused, and by name, when it is encoded.
    far = length(layout, change)
    return replace(change, factor=rules.clip / far) if rules.clip < far < math.inf else change
