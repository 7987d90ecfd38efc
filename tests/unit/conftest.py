"""What every unit test leaves as it found it."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A test that starts a command's log in this process leaves it to no other: tests run in any order."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
