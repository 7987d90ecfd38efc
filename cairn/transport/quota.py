"""How many calls may be under way: of one caller, and of all together."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cairn.errors import LimitExceeded
from cairn.identity.names import NodeName
from cairn.transport.access import LONG_CALLS
from cairn.transport.connections import Connections
from cairn.transport.pools import LONG_CALLS_OF_ONE_CALLER, SHORT_CALLS_OF_ONE_CALLER, Pools
from cairn.transport.steps import Call


class Place:
    """The place of one call. It is free again when the handler and the call itself have both ended.

    A handler may go on when its caller is gone, and holds a thread. An answer that nobody takes stays in
    memory when its handler is gone.
    """

    def __init__(self, quota: "Quota", node: NodeName) -> None:
        self._quota = quota
        self._node = node
        self._holders = 2

    def leave(self) -> None:
        """One of the two has ended."""
        with self._quota.lock:
            self._holders -= 1
            if self._holders == 0:
                self._quota.free(self._node)


class Quota:
    """The calls of one kind that are under way. Every method may be called from any thread."""

    def __init__(self, kind: str, each: int, in_all: int) -> None:
        """Let every caller have `each` calls of a kind, "short" or "long", and all together `in_all`."""
        self.lock = threading.Lock()
        self._kind = kind
        self._each = each
        self._in_all = in_all
        self._under_way: Counter[NodeName] = Counter()

    def take(self, node: NodeName) -> Place:
        """A place for one more call. Raises LimitExceeded where there is none."""
        with self.lock:
            if self._under_way[node] >= self._each:
                raise LimitExceeded(f"{node} has {self._each} {self._kind} calls under way already")
            if self._under_way.total() >= self._in_all:
                raise LimitExceeded(
                    f"this node has {self._in_all} {self._kind} calls under way already, of many callers"
                )
            self._under_way[node] += 1
        return Place(self, node)

    def free(self, node: NodeName) -> None:
        """Take one call less into account; the lock is held."""
        self._under_way[node] -= 1
        if not self._under_way[node]:
            del self._under_way[node]


class Quotas:
    """Counts calls and connections, so that one caller cannot take the others' threads and memory."""

    def __init__(self, pools: Pools, connections: Connections) -> None:
        self._connections = connections
        self._short = Quota("short", SHORT_CALLS_OF_ONE_CALLER, pools.short_calls)
        self._long = Quota("long", LONG_CALLS_OF_ONE_CALLER, pools.long_calls)

    @contextmanager
    def around(self, call: Call) -> Iterator[None]:
        node, peer = call.node, call.context.peer()
        self._connections.enter(node, peer)
        try:
            place = (self._long if call.method in LONG_CALLS else self._short).take(node)
        except LimitExceeded:
            self._connections.leave(node, peer)
            raise

        def ended() -> None:
            self._connections.leave(node, peer)
            place.leave()

        try:
            yield
        finally:
            if not call.context.add_callback(ended):  # the call has ended already
                ended()
            place.leave()
