"""Nodes whose container has no room left on its disk, too little memory, or a bad network."""

import re
import signal

import pytest

from tests.chaos.conftest import Faultless
from tests.chaos.invariants import check, check_nothing_half_written, released_rounds
from tests.chaos.marking import OWNERS
from tests.containers.boxes import MEMORY_BYTES, PUSH_PORT, Boxes
from tests.scenarios.processes import until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

ALL = {frozenset(OWNERS)}


@pytest.mark.parametrize(
    ("node", "point"),
    [("aggregator", "aggregator.seal.before_release"), ("bob", "owner.train.done")],
)
def test_a_node_whose_disk_is_full_goes_on_once_there_is_room(
    node: str, point: str, boxes: Boxes, faultless: Faultless
) -> None:
    def says_so() -> bool:
        boxes.tend()
        return "disk is full" in boxes.output_of(node)

    with boxes.explained():
        boxes.begin({node: f"{point}=stop@2"})
        boxes.await_frozen(node)
        with boxes.disk_full(node):
            boxes.running[node].send(signal.SIGCONT)
            until(says_so, f"{node} has no room")
        boxes.run_to_end()
        assert "Traceback" not in boxes.output_of(node)
        check(boxes, faultless.model)
        check_nothing_half_written(boxes)


def test_an_owner_whose_training_takes_all_memory_leaves_the_round_and_stays(
    boxes: Boxes, faultless: Faultless
) -> None:
    hungry = boxes.home / "data" / "bob" / "hungry"
    hungry.write_text(str(2 * MEMORY_BYTES >> 20))
    with boxes.explained():
        boxes.begin()
        until(lambda: boxes.tend() or boxes.history(), "a round ends", boxes.patience_seconds)
        hungry.unlink()
        boxes.run_to_end()
        assert boxes.restarts == []
        assert "was killed by SIGKILL in the middle of its work" in boxes.output_of("bob")
        counted = released_rounds(boxes)
        assert counted[min(counted)] == OWNERS.keys() - {"bob"}
        check(boxes, faultless.model)


def test_a_slow_link_costs_time_and_no_owner(boxes: Boxes, faultless: Faultless) -> None:
    rate = ("rate", "8mbit", "burst", "64kb", "latency", "400ms")
    with boxes.explained():
        boxes.in_network_of("bob", "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *rate)
        boxes.begin()
        boxes.run_to_end()
        slowed = boxes.in_network_of("bob", "tc", "-s", "qdisc", "show", "dev", "eth0")
        boxes.in_network_of("bob", "tc", "qdisc", "del", "dev", "eth0", "root")
        sent = re.search(r"Sent (\d+) bytes .* overlimits (\d+)", slowed)
        assert sent is not None
        assert int(sent[1]) > boxes.rounds * boxes.secrets["bob"].nbytes
        assert int(sent[2]) > 0
        assert set(released_rounds(boxes).values()) == ALL
        check(boxes, faultless.model)


LOST = ("-m", "statistic", "--mode", "random", "--probability", "0.05", "-j", "DROP")
# Of each connection whatever comes after so many bytes is answered by a reset, twice in all. Only the
# owner is told: the aggregator finds out by itself.
RESET = (
    *("-p", "tcp", "--dport", str(PUSH_PORT)),
    *("-m", "connbytes", "--connbytes", "400000:", "--connbytes-dir", "original"),
    *("--connbytes-mode", "bytes"),
    *("-m", "limit", "--limit", "1/hour", "--limit-burst", "2"),
    *("-j", "REJECT", "--reject-with", "tcp-reset"),
)


@pytest.mark.parametrize(
    ("victim", "chains", "rule"),
    [
        pytest.param("aggregator", ("INPUT", "OUTPUT"), LOST, id="loss at the aggregator"),
        pytest.param("bob", ("OUTPUT",), RESET, id="resets in the middle of pushes"),
    ],
)
def test_a_network_that_loses_and_resets_costs_time_and_no_owner(
    victim: str,
    chains: tuple[str, ...],
    rule: tuple[str, ...],
    boxes: Boxes,
    faultless: Faultless,
) -> None:
    with boxes.explained():
        for chain in chains:
            boxes.in_network_of(victim, "iptables", "-A", chain, *rule)
        boxes.begin()
        boxes.run_to_end()
        hit = [_packets(boxes, victim, chain) for chain in chains]
        for chain in chains:
            boxes.in_network_of(victim, "iptables", "-F", chain)
        assert all(hit), f"the rules of {victim} met no packet"
        assert boxes.restarts == []
        assert set(released_rounds(boxes).values()) == ALL
        check(boxes, faultless.model)


def _packets(boxes: Boxes, node: str, chain: str) -> int:
    """How many packets the one rule of a chain has met."""
    listed = boxes.in_network_of(node, "iptables", "-vnxL", chain)
    return int(listed.splitlines()[2].split()[0])
