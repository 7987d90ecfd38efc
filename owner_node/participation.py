"""Takes one invitation from the owner's own decision to the receipt.

The order is the promise: decide first, then join, then fetch and check the model, then open the data.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cairn.errors import CairnError, InvalidMessage, NotFound, WrongState
from cairn.protocol.messages import digest_of, job_spec_from_bytes
from cairn.protocol.reasons import told_to_others
from cairn.runtime.failpoints import failpoint
from cairn.runtime.timeouts import CALL_SECONDS, SHUTDOWN_SECONDS
from cairn.tasks.loader import TaskFailed
from cairn.transport.retry import retry_while_unavailable
from cairn.v1 import aggregator_pb2, coordinator_pb2
from cairn.v1 import round_pb2 as pb
from owner_node import events
from owner_node.aggregator_client import AggregatorClient
from owner_node.deadline import Deadline, not_fetched, too_late
from owner_node.download import Downloader
from owner_node.events import Observer
from owner_node.invitation import Declined, Invited
from owner_node.lease import Lease
from owner_node.local_work import LocalWork, Progress
from owner_node.policy import Policy
from owner_node.record_privacy import PrivacyAccount
from owner_node.records.decisions import DecisionLog
from owner_node.records.ledger import NotRecorded
from owner_node.settlement import Settlement
from owner_node.statistics_rules import check_statistics
from owner_node.training.kept_tensors import KeptTensors
from owner_node.training.supervisor import TrainingSupervisor
from owner_node.turns import Turns
from owner_node.upload import Uploader


@dataclass(frozen=True)
class _Current:
    """The round under way. Where its work takes a fixed time, it goes on to the end of that."""

    invited: Invited
    process: TrainingSupervisor
    lease: Lease
    is_fixed: bool


class Participation:
    """Takes part in rounds, one at a time."""

    def __init__(
        self,
        policy: Policy,
        decisions: DecisionLog,
        downloader: Downloader,
        uploader: Uploader,
        settlement: Settlement,
        kept: KeptTensors,
        privacy: PrivacyAccount,
        aggregator: AggregatorClient,
        tasks: Mapping[str, TrainingSupervisor],
        stopping: threading.Event,
        tell: Observer,
    ) -> None:
        self._policy = policy
        self._decisions = decisions
        self._downloader = downloader
        self._uploader = uploader
        self._settlement = settlement
        self._local_work = LocalWork(uploader, kept, privacy, stopping)
        self._aggregator = aggregator
        self._tasks = tasks
        self._stopping = stopping
        self._tell = tell
        self._turns = Turns(aggregator, decisions.past, stopping, tell)
        self._lock = threading.Lock()
        self._current: _Current | None = None
        self._dropped: set[bytes] = set()

    def take_part(self, invitation: coordinator_pb2.Invitation) -> None:
        """Answer an invitation and do what it asks. Never raises: a failure ends in a decline."""
        try:
            invited = self._read(invitation)
        except CairnError as error:
            self._decisions.refused(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread must outlive it
            self._tell(events.InvitationUnreadable(error))
            self._decisions.refused(InvalidMessage("the invitation could not be read"))
        else:
            self._turns.wait(invited)
            if self._stopping.is_set():  # `leave` is over: nobody would be told that we go
                return
            with self._decisions.telling_of_a_failure(invited.job.task):
                self._answer(invited)

    def _answer(self, invited: Invited) -> None:
        try:
            self._settlement.settle()
            past = self._decisions.past
            self._policy.check(invited, past.known(invited))
            check_statistics(self._policy.tasks, invited, past.budgets)
            self._work(invited)
        except (Declined, TaskFailed, NotRecorded) as error:
            self._give_up(invited, error)
        except (WrongState, NotFound) as error:
            self._decisions.left_out(invited, error)
        except InvalidMessage as error:
            self._decisions.refused(error, invited)
        except CairnError as error:
            self._tell(events.RoundFailed(*invited.ids, error))
            self._decisions.left_out(invited, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread must outlive it
            self._tell(events.RoundCrashed(*invited.ids, error))
            self._give_up(invited, TaskFailed("the round failed"))

    def end(self, outcome: coordinator_pb2.Outcome) -> None:
        """A round has ended, as the coordinator says. From any thread.

        The work on it is dropped where the aggregator has signed for that, and else as soon as the
        aggregator says so itself.
        """
        if self._settlement.is_proved(outcome):
            self._drop(outcome.manifest_digest)
            return
        with self._lock:
            current = self._current
        if current is not None and current.invited.digest == outcome.manifest_digest:
            current.lease.renew_now()

    def take_in(self, outcome: coordinator_pb2.Outcome) -> None:
        """Record how a round ended, after the work on it. Never raises."""
        self._recording_ends(lambda: self._settlement.take_in(outcome))

    def settle(self) -> None:
        """Ask the aggregator how our rounds ended. From any thread. Never raises."""
        with self._lock:
            under_way = self._current.invited.digest if self._current is not None else b""
        self._recording_ends(lambda: self._settlement.settle(under_way))

    def _recording_ends(self, record: Callable[[], None]) -> None:
        try:
            record()
        except CairnError as error:
            self._tell(events.EndNotRecorded(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, this thread must outlive it
            self._tell(events.EndCrashed(error))

    def leave(self) -> None:
        """This node is told to stop: say so in the round under way, so that nobody waits for it."""
        with self._lock:
            current = self._current
        if current is not None:
            stopping = Declined("this node is told to stop", pb.REASON_STOPPING)
            self._decisions.declined(current.invited, stopping)
            self._decline(
                current.invited.digest, stopping.reason, SHUTDOWN_SECONDS, threading.Event()
            )
            current.process.cancel()

    def _read(self, invitation: coordinator_pb2.Invitation) -> Invited:
        manifest, digest = self._aggregator.manifest(invitation.manifest)
        # Before it is parsed: what the aggregator has not registered can be of any size and shape.
        if digest_of(invitation.job_spec) != manifest.job_digest:
            raise InvalidMessage("the invitation's job is not the one the aggregator signed for")
        return Invited(manifest, digest, job_spec_from_bytes(invitation.job_spec))

    def _work(self, invited: Invited) -> None:
        process = self._tasks[invited.job.task]
        joined, deadline = retry_while_unavailable(
            lambda: self._join(invited),
            "the aggregator",
            invited.manifest.lease_seconds,
            self._stopping,
        )
        self._turns.joined(invited, deadline.latest)
        failpoint("owner.join.answered")
        self._decisions.joined(invited)
        failpoint("owner.join.recorded")
        if joined.update_accepted:
            self._tell(events.AcceptedBefore(*invited.ids))
            self._decisions.find_receipt(invited)
            return
        self._tell(events.Joined(*invited.ids, str(invited.job.aggregation)))
        seconds = self._policy.tasks[invited.job.task].work_seconds
        progress = Progress(
            lambda: invited.digest in self._dropped, lambda: self._check_not_dropped(invited)
        )
        lease = Lease(
            lambda: self._renew(invited),
            joined.lease_seconds,
            deadline.latest,
            lambda: self._drop(invited.digest),
            self._tell,
        )
        with self._lock:
            if invited.digest in self._dropped:
                raise WrongState("the round has ended", pb.REASON_ROUND_ENDED)
            self._current = _Current(invited, process, lease, seconds is not None)
        try:
            with lease:
                self._check_not_dropped(invited)
                with deadline.cuts_off(partial(too_late, lease)):
                    if self._uploader.push_again(invited, deadline.latest):
                        return
                with deadline.cuts_off(not_fetched):
                    self._downloader.fetch(invited, process, deadline.latest, progress.is_dropped)
                    failpoint("owner.fetch.complete")
                    self._check_not_dropped(invited)
                with deadline.cuts_off(partial(too_late, lease)):
                    self._local_work.work(invited, process, deadline, seconds, progress)
        finally:
            with self._lock:
                self._current = None

    def _join(self, invited: Invited) -> tuple[aggregator_pb2.JoinRoundResponse, Deadline]:
        asked = time.monotonic()
        joined = self._aggregator.join(invited.digest)
        return joined, Deadline.of(asked, joined.open_seconds)

    def _renew(self, invited: Invited) -> aggregator_pb2.JoinRoundResponse:
        try:
            joined = self._aggregator.join(invited.digest)
        except InvalidMessage as error:
            self._decisions.refused(error, invited)
            raise
        if joined.queue_place:
            self._tell(events.Queued(*invited.ids, joined.queue_place))
        return joined

    def _drop(self, manifest_digest: bytes) -> None:
        with self._lock:
            current = self._current
            under_way = {current.invited.digest} if current is not None else set()
            # A statement of an old round, sent again, must not make us forget that this one is dropped.
            self._dropped = self._dropped & under_way | {manifest_digest}
            if current is not None and manifest_digest in under_way and not current.is_fixed:
                current.process.cancel()

    def _check_not_dropped(self, invited: Invited) -> None:
        with self._lock:
            if invited.digest in self._dropped:
                raise WrongState(
                    "the round ended before this owner was done", pb.REASON_ROUND_ENDED
                )
        if self._stopping.is_set():
            raise Declined("this node is told to stop", pb.REASON_STOPPING)

    def _give_up(self, invited: Invited, error: CairnError) -> None:
        if self._stopping.is_set():
            return  # `leave` has said so
        self._decisions.declined(invited, error)
        reason = told_to_others(error.reason)
        self._decline(invited.digest, reason, CALL_SECONDS, self._stopping)

    def _decline(
        self, digest: bytes, reason: "pb.Reason", seconds: float, stopping: threading.Event
    ) -> None:
        """Say so, again where that is lost: else the others wait for our lease to end. Never raises."""
        try:
            retry_while_unavailable(
                lambda: self._aggregator.decline(digest, reason, seconds),
                "the aggregator",
                seconds,
                stopping,
            )
        except CairnError as error:
            self._tell(events.NotDeclined(error))
