"""The aggregator's TOML file."""

from typing import Annotated

from pydantic import Field

from cairn.limits import MAX_COHORT, MIN_COHORT
from cairn.settings import Address, FilePath, IdentityFiles, NodeLabel, Seconds, Settings


class AggregatorIdentityFiles(IdentityFiles):
    """The aggregator's identity: with the key that signs manifests, receipts and statements."""

    signing_key: FilePath


class AggregatorSettings(Settings):
    """Everything an aggregator is told.

    `owners` is the roster: nobody else is taken into a cohort. `floor` is the smallest cohort that may
    be released, whatever a job says. `lease_seconds` is how long an owner that is not heard of stays
    in a round. `patience_seconds` is how long an aggregator that runs for one job waits for a coordinator
    that does not call. `state` is a directory for the releases and the ledger.
    """

    federation: NodeLabel
    name: NodeLabel
    listen_owners: Address
    listen_coordinators: Address
    state: FilePath
    owners: list[NodeLabel]
    floor: Annotated[int, Field(ge=MIN_COHORT, le=MAX_COHORT)] = 3
    lease_seconds: Seconds = 15
    patience_seconds: Seconds = 3600
    identity: AggregatorIdentityFiles
