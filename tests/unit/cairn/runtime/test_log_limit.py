"""Which lines of a log are limited."""

from pathlib import Path

import pytest

from cairn.runtime.log_limit import _OF_CALLERS, _SAID_OF_PEERS

ROOT = Path(__file__).parents[4]
CODE = "".join(
    path.read_text(encoding="utf-8")
    for package in ("aggregator_node", "cairn", "coordinator", "owner_node")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "log_limit.py"
)


@pytest.mark.parametrize("event", sorted({*_OF_CALLERS, *_SAID_OF_PEERS}))
def test_every_limited_line_is_one_that_a_node_writes(event: str) -> None:
    assert f'"{event}"' in CODE
