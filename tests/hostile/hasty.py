"""A node that waits for its peers a few seconds where others wait for half a minute: `python hasty.py NODE ARGUMENT...`.

What silence brings upon a peer is the same however long the node puts up with it. That the limits of Cairn are those of
its documentation is `tests/unit/test_timeouts.py`'s to prove.
"""

import runpy
import sys

from cairn.transport import call_deadline, idle_timeout, interceptor, server

CALL_SECONDS, IDLE_SECONDS = 3, 8  # in place of 10 and 30


def _be_hasty() -> None:
    vars(interceptor)["CALL_SECONDS"] = CALL_SECONDS
    for module in (call_deadline, idle_timeout):
        vars(module)["IDLE_SECONDS"] = IDLE_SECONDS
    options = dict(server._LISTENING)
    options["grpc.server_handshake_timeout_ms"] = 1000 * CALL_SECONDS
    server._LISTENING[:] = options.items()


if __name__ == "__main__":
    _be_hasty()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
