"""The order of the tests."""

import pytest

# What waits for most of its time begins first, so that the others compute meanwhile, and nobody waits at the end.
WAITING = (
    "test_half_open_calls.py",
    "test_owner_pace.py",
    "test_unread_answers.py",
    "test_failures.py",
    "test_limits.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in WAITING)
