"""The aggregator's TOML file."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from aggregator_node.admission import AdmissionPolicy
from aggregator_node.aggregation.workspace import memory_of_this_machine
from aggregator_node.roster import Listed
from cairn.config import (
    RULE_WORDS_UNLESS_SAID,
    AddressText,
    FilePath,
    IdentityFiles,
    NodeLabel,
    OptimizerWord,
    RuleWord,
    Seconds,
    Settings,
)
from cairn.model.validation import Bounds
from cairn.protocol.limits import LARGEST_SHARE, MAX_COHORT, MAX_EXAMPLES, MIN_COHORT
from cairn.protocol.statistics import MIN_CELL
from cairn.protocol.words import OPTIMIZERS, RULES
from cairn.runtime.timeouts import LEASE_SECONDS, STANDBY_TIMEOUT_SECONDS


def _fingerprint(text: str) -> str:
    if re.fullmatch("sha256:[0-9a-f]{64}", text) is None:
        raise ValueError(
            "should be a fingerprint as `cairn identity` prints it: sha256: and 64 hexadecimal digits"
        )
    return text


Fingerprint = Annotated[str, AfterValidator(_fingerprint)]


class AggregatorIdentityFiles(IdentityFiles):
    """The aggregator's identity: with the key that signs manifests, receipts and statements."""

    signing_key: FilePath


class AggregatorSettings(Settings):
    """Everything an aggregator is told.

    `owners` is the roster: nobody else is taken into a cohort, and who is removed from it is refused
    at its next call. `revoked` lists the fingerprints of certificates, of owners or coordinators, that are
    refused though they are valid, each of the certificate itself or of its public key; it is read again like the
    roster, and a file that cannot be used keeps both for an hour. `floor` is the smallest cohort that may be released, whatever a job says.
    `lease_seconds` is how long an owner that is not heard of stays in a round. `patience_seconds` is how
    long an aggregator that runs for one job waits for a coordinator that does not call. `state` is a
    directory for the releases and the ledger.

    `largest_value` and `largest_integer` bound every element of an update; `largest_model_megabytes` bounds a
    job's model. `largest_share` is the largest share of the total weight that one update counts for: heavier
    ones are capped; where too few owners are counted for any to be below it, all count the same. A smaller share
    costs memory: up to 1 / share - 1 large updates of a round are held back until their weight is known.
    `largest_weight_ratio` says how many times the fewest examples of a job its most may be.
    `memory_megabytes` is the most memory for rounds that are open, three quarters of this machine's where it is
    not given; a round that does not fit is refused. While a coordinator waits for memory, no other gets more
    than an equal share of it. `updates_in_flight` is how many large updates a round takes at a time: the others
    wait in line. More is faster where the owners' links are slow, and each takes as much memory as the model.
    `compare_releases` says which earlier releases a new one must count the same owners as, or have none
    in common with: those of the same base, or of every model with the same tensors. Of the same base, tensors
    are compared with tensors and metrics with metrics, whatever the phase: a training whose metrics may not
    stand beside earlier ones is released without them. Of the same tensors, every release is compared.
    `rules` and `optimizers` list those that a job may have. `min_cell` is the fewest examples of a cell that statistics
    release, whatever a job says; `max_statistics` is how many times a column of a task is released of the same owners.
    `rules` and `optimizers` list those that a job may have. `max_epsilon` is the most that a job with noise may tell of
    one owner, as its `epsilon` says; a job without noise has none.
    """

    kind: ClassVar[str] = "an aggregator"
    federation: NodeLabel
    name: NodeLabel
    listen_owners: AddressText
    listen_coordinators: AddressText
    state: FilePath
    owners: list[NodeLabel]
    revoked: tuple[Fingerprint, ...] = ()
    floor: Annotated[int, Field(ge=MIN_COHORT, le=MAX_COHORT)] = 3
    lease_seconds: Seconds = LEASE_SECONDS
    patience_seconds: Seconds = STANDBY_TIMEOUT_SECONDS
    largest_value: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e9
    largest_integer: Annotated[int, Field(ge=1, lt=1 << 63)] = 1 << 53
    largest_share: Annotated[float, Field(gt=0, le=LARGEST_SHARE)] = LARGEST_SHARE
    largest_weight_ratio: Annotated[int, Field(ge=1, lt=1 << 31)] = 1000
    largest_model_megabytes: Annotated[int, Field(ge=1, le=1 << 26)] = 8192
    memory_megabytes: Annotated[int, Field(ge=1, le=1 << 26)] | None = None
    updates_in_flight: Annotated[int, Field(ge=1, le=1024)] = 2
    compare_releases: Literal["same_base", "same_model"] = "same_base"
    rules: Annotated[tuple[RuleWord, ...], Field(min_length=1)] = RULE_WORDS_UNLESS_SAID
    optimizers: Annotated[tuple[OptimizerWord, ...], Field(min_length=1)] = get_args(OptimizerWord)
    min_cell: Annotated[int, Field(ge=2, le=MAX_EXAMPLES)] = MIN_CELL
    max_statistics: Annotated[int, Field(ge=1)] = 1
    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    identity: AggregatorIdentityFiles

    @property
    def file(self) -> Path:
        """Where the roster is read again when it changes. Raises ValueError for settings that no file holds."""
        if self.read_from is None:
            raise ValueError("an aggregator's settings are those of a file: load them from one")
        return self.read_from

    @property
    def memory_bytes(self) -> int:
        if self.memory_megabytes is not None:
            return self.memory_megabytes << 20
        return memory_of_this_machine() * 3 // 4

    def listed(self) -> Listed:
        """Whom this file admits."""
        return Listed(frozenset(self.owners), frozenset(self.revoked))

    def policy(self) -> AdmissionPolicy:
        """What this file allows of jobs and rounds."""
        return AdmissionPolicy(
            federation=self.federation,
            owners=frozenset(self.owners),
            floor=self.floor,
            lease_seconds=self.lease_seconds,
            weight_ratio=self.largest_weight_ratio,
            largest_share=self.largest_share,
            model_bytes=self.largest_model_megabytes << 20,
            bounds=Bounds(self.largest_value, self.largest_integer),
            rules=frozenset(RULES[word] for word in self.rules),
            optimizers=frozenset(OPTIMIZERS[word] for word in self.optimizers),
            min_cell=self.min_cell,
            max_epsilon=self.max_epsilon,
        )
