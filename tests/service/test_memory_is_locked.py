"""No update in the aggregator's memory gets into swap: what real processes do, with and without the right to lock it."""

import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from aggregator_node.memory_locking import swap_findings
from cairn.diagnostics.findings import Grade
from tests.service.network import Network
from tests.warm.start import BIN

SWAPS = "Filename Type Size Used Priority\n/dev/dm-1 partition 8388604 0 -2\n"
# Shows the program behind it this file as /proc/swaps, and lets it lock next to nothing.
SWAPPING = 'mount --bind "$0" /proc/swaps && exec prlimit --memlock=65536 "$@"'


def locked_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) << 10
    raise AssertionError


def swapping(directory: Path) -> list[str]:
    swaps = directory / "swaps"
    swaps.write_text(SWAPS)
    command = ["unshare", "-Urm", "sh", "-c", SWAPPING, str(swaps)]
    if (
        shutil.which("prlimit") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip("this machine has no prlimit, or lets this account make no user namespace")
    return command


def test_the_memory_of_an_aggregator_that_may_is_locked_and_nothing_is_said(tmp_path: Path) -> None:
    network = Network(tmp_path)
    try:
        may = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY
        if not may and not _has_capability_to_lock():
            pytest.skip("this account may not lock memory")
        assert locked_bytes(network.node.pid) > 16 << 20
        assert not network.node.events("a check at the start")
    finally:
        network.stop()


def test_an_aggregator_that_may_not_lock_its_memory_on_a_machine_that_swaps_says_so(
    tmp_path: Path,
) -> None:
    network = Network(tmp_path, swapping(tmp_path))
    try:
        assert locked_bytes(network.node.pid) == 0
        (said,) = network.node.events("a check at the start")
        assert "an owner's update can be written to the disk; turn swap off" in said["found"]
        assert network.job().run({"alice": bytes(16), "bob": bytes(16)}).statement.contributors == 2
    finally:
        network.stop()


def test_the_doctor_says_whether_updates_can_get_into_swap(tmp_path: Path) -> None:
    network = Network(tmp_path)
    network.stop()
    doctor = [str(BIN / "cairn"), "doctor", str(network.directory / "aggregator.toml")]
    for command, grade in ((doctor, "ok"), ([*swapping(tmp_path), *doctor], "warning")):
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if grade == "warning" or not Path("/proc/swaps").read_text().splitlines()[1:]:
            assert f"{grade:9}memory: " in said, said


@pytest.mark.parametrize(
    ("swaps", "limits", "grade"),
    [
        (SWAPS.splitlines()[0] + "\n", {}, Grade.OK),
        (SWAPS, {"system.slice/aggregator.service": "0"}, Grade.OK),
        (SWAPS, {"system.slice": "0"}, Grade.OK),
        (SWAPS, {"system.slice": "max"}, Grade.WARNING),
        (SWAPS, {}, Grade.WARNING),
    ],
)
def test_a_control_group_without_swap_is_as_good_as_a_machine_without_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swaps: str,
    limits: dict[str, str],
    grade: Grade,
) -> None:
    monkeypatch.setattr("aggregator_node.memory_locking._may_lock", lambda: False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/swaps").write_text(swaps)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/aggregator.service\n")
    for group, limit in limits.items():
        place = tmp_path / "sys/fs/cgroup" / group
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.swap.max").write_text(f"{limit}\n")
    (finding,) = swap_findings(tmp_path)
    assert finding.grade is grade


def _has_capability_to_lock() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 14 & 1)
    return False
