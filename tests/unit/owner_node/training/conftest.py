"""Training processes that have imported PyTorch before they are needed, unless a test wants them cold."""

import subprocess

import pytest

from owner_node.training import child
from tests.warm.start import Subprocess, general


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "subprocess", Subprocess(general))


@pytest.fixture
def cold(_warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the process starts or ends is what the test is about."""
    monkeypatch.setattr(child, "subprocess", subprocess)
