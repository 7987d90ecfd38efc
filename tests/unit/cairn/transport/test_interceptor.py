"""In which pool of threads a call runs."""

import threading
from pathlib import Path
from typing import Any

import grpc

from cairn.v1 import aggregator_pb2, coordinator_pb2
from tests.service.door import ALICE, COORDINATOR, SECONDS, Door, Home, Ward, dialled


class Threads(Door):
    """Notes the pool of the thread that each call runs in."""

    def __init__(self, home: Home) -> None:
        self.pools: list[str] = []
        super().__init__(home)

    def _note(self, context: grpc.ServicerContext) -> None:
        super()._note(context)
        self.pools.append(threading.current_thread().name.partition("_")[0])


def test_a_call_that_lasts_takes_no_thread_of_the_short_ones(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    with Threads(ward.home(COORDINATOR)) as door:
        door.released.set()
        calls: Any = dialled(door, ward.home(ALICE))
        with calls.channel:
            list(calls.invitations.Attend(coordinator_pb2.AttendRequest(), timeout=SECONDS))
            calls.join()
            requests = iter([aggregator_pb2.SubmitUpdateRequest()])
            calls.intake.SubmitUpdate(requests, timeout=SECONDS)
    assert door.pools == ["stream", "call", "stream"]
