"""The commands of README and docs do what they say: each block that is marked for it is run.

A block marked `test, going on` is run after the marked block of its page before it, in the same directory.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.scenarios.processes import ROOT
from tests.warm.start import BIN

SECONDS = 480  # many times what it takes where nothing else runs
MARKED = re.compile(r"<!-- test(, going on)? -->\s*```console\n(.*?)```", re.DOTALL)


def blocks_of(text: str) -> list[str]:
    blocks: list[str] = []
    for goes_on, block in MARKED.findall(text):
        if goes_on:
            blocks[-1] += "$ for job in $(jobs -p); do wait $job; done\n" + block
        else:
            blocks.append(block)
    return blocks


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(encoding="utf-8"))]


def commands_of(block: str) -> list[str]:
    """The lines that begin with '$ ', each with those that it continues on."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def test_the_pages_have_commands_to_run() -> None:
    assert BLOCKS
    assert all(commands_of(block) for block in BLOCKS)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: " ".join(commands_of(block)[0].split()[:3])
)
def test_the_commands_of_the_pages_succeed(block: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    # Those in the background must succeed too: each is waited for by its own number.
    script = ["set -eu", *commands_of(block), "for job in $(jobs -p); do wait $job; done"]
    process = subprocess.Popen(
        ["/bin/bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"not done after {SECONDS} seconds:\n{output}")
    assert process.returncode == 0, output
    assert "Traceback" not in output
