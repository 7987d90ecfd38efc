"""Runs a node until the process that started it has ended, in whatever way: python -m coordinator.api.tied_node MODULE ARGUMENTS.

Its standard input is a pipe whose other end that process alone holds, so that it ends with it, also where that is killed.
The kernel's own signal for this (PR_SET_PDEATHSIG) comes when the thread ends that has started the node.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_the_starter() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
