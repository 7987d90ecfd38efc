"""The order of the tests."""

import pytest

# What takes or waits longest begins first, so that the others run meanwhile and nobody is left with it at the end.
LONGEST = (
    "test_half_open_calls.py",
    "test_owner_pace.py",
    "test_unread_answers.py",
    "test_failures.py",
    "test_limits.py",
    "test_sequences.py",
    "test_examples.py",
    "test_readme.py",
    "test_coordinator_flood.py",
    "test_fuzz.py",
    "test_task_and_kernel.py",
    "test_task_in_sandbox.py",
    "test_frozen.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
