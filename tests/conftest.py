"""The order of the tests, and one thread for each of their processes."""

import os

import pytest

# Read when NumPy and PyTorch are imported, which is after this. Beside other tests, the threads of one process only wait
# for each other, and spin while they do: a small training took five times the CPU. An outer setting stands.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# What takes or waits longest begins first, so that the others run meanwhile and nobody is left with it at the end.
LONGEST = (
    "test_half_open_calls.py",
    "test_owner_pace.py",
    "test_unread_answers.py",
    "test_failures.py",
    "test_sequences.py",
    "test_examples.py",
    "test_readme.py",
    "test_breast_cancer.py",
    "test_poisoned.py",
    "test_task_in_sandbox.py",
    "test_task_and_kernel.py",
    "test_fuzz.py",
    "test_connections.py",
    "test_frozen.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
