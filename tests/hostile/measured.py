"""`cairn` with little address space, and a note of how much it used: `measured.py STATUS ARGUMENT...`."""

import resource
import runpy
import sys
from pathlib import Path

# So that a test that fails does not take the machine with it.
_ADDRESS_SPACE = 3 << 30


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    kept = Path(sys.argv.pop(1))
    try:
        runpy.run_module("cairn", run_name="__main__", alter_sys=True)
    finally:
        kept.write_text(Path("/proc/self/status").read_text())
