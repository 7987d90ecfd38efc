"""Judges the releases of a job that looks for the best, and says when it has waited long enough for a better one."""

import math
from collections.abc import Mapping

from coordinator import events
from coordinator.best_release import (
    BestSettings,
    BestSoFar,
    check_is_measured,
    has_waited_enough,
    judged,
)


class BestWatch:
    """Without a rule it judges nothing, and no job ends early."""

    def __init__(self, rule: BestSettings | None, tell: events.Observer) -> None:
        self.rule = rule
        self._tell = tell
        self._lacks_metric = False

    def judge(
        self,
        best: BestSoFar | None,
        number: int,
        measured: Mapping[str, float] | None,
        *,
        goes_on: bool,
    ) -> BestSoFar | None:
        """The best so far, now that the last release, of this round, is evaluated or goes without.

        `goes_on` says whether a round follows.
        """
        rule = self.rule
        if rule is None or measured is None:
            return best
        value = measured.get(rule.metric, math.nan)
        was_lacking, self._lacks_metric = self._lacks_metric, not math.isfinite(value)
        if math.isfinite(value):
            return judged(rule, best, number, value)
        is_stopped = best is None and rule.metric not in measured and goes_on
        if not was_lacking and not is_stopped:  # it is said once in a row
            self._tell(events.BestMetricMissing(number, rule.metric, sorted(measured)))
        return best

    def check(
        self, best: BestSoFar | None, number: int, measured: Mapping[str, float] | None
    ) -> None:
        """Raise CairnError where rounds would go on that could never be judged."""
        if self.rule is not None and measured is not None:
            check_is_measured(self.rule, best, number, measured)

    def has_waited(self, best: BestSoFar | None) -> bool:
        """Whether it has waited long enough."""
        return self.rule is not None and has_waited_enough(self.rule, best)
