"""A stage whose nodes reach each other through relays that lose calls."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.marking import OWNERS
from tests.chaos.stage import Stage
from tests.relay import Losses, Relay


class RelayedStage(Stage):
    """Every connection goes through a relay. Who listens where stays as it was.

    The rule is one that measures from the base, which is so brought to the aggregator, and bounds nothing: what it gives is
    the mean.
    """

    rule = {"rule.name": "norm_bounded_mean", "rule.norm": 1e30}  # noqa: RUF012 - not changed

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.losses = Losses()
        self._relays: list[Relay] = []
        self._put_between("aggregator", "aggregator", OWNERS)
        self._put_between("aggregator", "aggregator", ["coordinator"])
        self._put_between("coordinator", "coordinator", OWNERS)

    def close(self) -> None:
        super().close()
        for relay in self._relays:
            relay.close()

    def _put_between(
        self, callee: str, key: str, callers: Sequence[str] | Mapping[str, float]
    ) -> None:
        """Have `callers` dial a relay where the key of their files says the callee is."""
        pattern = re.compile(rf'^{key} = "(localhost:\d+)"', re.MULTILINE)
        files = [self.files / f"{caller}.toml" for caller in callers]
        (target,) = {pattern.findall(file.read_text())[0] for file in files}
        relay = Relay(self.files, callee, target, self.losses)
        self._relays.append(relay)
        for caller in callers:
            self.edit(caller, f'{key} = "{target}"', f'{key} = "{relay.address}"')
