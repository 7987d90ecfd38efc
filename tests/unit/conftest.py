"""What every unit test leaves as it found it."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# A test says what its code computes, not how fast: beside other work any example may take its time.
settings.register_profile("cairn", deadline=None)
settings.load_profile("cairn")


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A test that starts a command's log in this process leaves it to no other: tests run in any order."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
