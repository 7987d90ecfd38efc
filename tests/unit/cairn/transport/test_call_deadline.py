"""How long a node waits for a peer to take its answer."""

from typing import Any

from cairn.transport.call_deadline import await_taken


class NotedWatch:
    def __init__(self) -> None:
        self.expected: list[tuple[float, str]] = []

    def expect(self, seconds: float, complaint: str) -> None:
        self.expected.append((seconds, complaint))


def test_a_peer_has_30_seconds_to_take_each_message_of_an_answer() -> None:
    watch: Any = NotedWatch()
    await_taken(watch)
    assert watch.expected == [(30, "nobody took the answer within 30 seconds")]
