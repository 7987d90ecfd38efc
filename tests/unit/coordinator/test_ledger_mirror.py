"""The run's copy of the aggregator's ledger only grows, and notices when the ledger did not."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cairn.errors import CairnError, InvalidMessage, UsageError
from cairn.ledger.chain import Entry
from cairn.protocol.statements import HEAD, from_envelope, sign, verified_head
from cairn.v1 import round_pb2 as pb
from coordinator.aggregator_client import Page
from coordinator.ledger_mirror import LedgerMirror

KEY = Ed25519PrivateKey.generate()


class Aggregator:
    """Answers as an aggregator does, at most `page` entries at a time."""

    def __init__(self, page: int = 3, federation: str = "clinics") -> None:
        self.entries: list[Entry] = []
        self.asked: list[int] = []
        self._page = page
        self._federation = federation

    def grow(self, count: int, word: str = "round") -> "Aggregator":
        for _ in range(count):
            number = len(self.entries) + 1
            before = self.entries[-1].head if self.entries else bytes(32)
            body = json.dumps({word: number}).encode()
            head = sha256(before + b"open\x00" + body).digest()
            self.entries.append(Entry(number, "open", body, head))
        return self

    def __call__(self, first: int) -> Page:
        self.asked.append(first)
        last = self.entries[-1].head if self.entries else bytes(32)
        head = pb.LedgerHead(federation=self._federation, number=len(self.entries), head=last)
        signed = sign(KEY, HEAD, head.SerializeToString())
        return Page(tuple(self.entries[first - 1 :][: self._page]), head, signed)


def copied(folder: Path, aggregator: Aggregator) -> LedgerMirror:
    copy = LedgerMirror(folder, "clinics")
    copy.bring_up_to_date(aggregator)
    return copy


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_copy_has_every_entry_and_the_signed_head(tmp_path: Path) -> None:
    aggregator = Aggregator().grow(8)
    assert copied(tmp_path, aggregator).number == 8
    assert lines(tmp_path) == [
        {"number": e.number, "kind": "open", "body": e.body.decode(), "head": e.head.hex()}
        for e in aggregator.entries
    ]
    text = (tmp_path / "ledger_head.json").read_text(encoding="utf-8")
    head = verified_head(KEY.public_key(), from_envelope(text))
    assert (head.number, head.head) == (8, aggregator.entries[-1].head)
    assert json.loads(text)["ledger"]["number"] == 8


def test_a_copy_goes_on_where_it_ended(tmp_path: Path) -> None:
    aggregator = Aggregator().grow(4)
    copied(tmp_path, aggregator)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    aggregator.asked.clear()
    copied(tmp_path, aggregator.grow(3))
    assert [line["number"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(before)
    assert aggregator.asked == [4, 6]


def test_a_copy_that_lacks_nothing_asks_once_and_writes_nothing(tmp_path: Path) -> None:
    aggregator = Aggregator().grow(4)
    copy = copied(tmp_path, aggregator)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    aggregator.asked.clear()
    copy.bring_up_to_date(aggregator)
    assert aggregator.asked == [4]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_an_empty_ledger_is_copied(tmp_path: Path) -> None:
    assert copied(tmp_path, Aggregator()).number == 0
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize("now", [3, 4, 9])
def test_a_ledger_with_another_entry_in_place_of_the_last_was_replaced(
    tmp_path: Path, now: int
) -> None:
    copied(tmp_path, Aggregator().grow(4))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(CairnError, match="replaced or rolled back: entry 4 is not"):
        copied(tmp_path, Aggregator().grow(now, word="other"))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_ledger_that_became_shorter_was_rolled_back(tmp_path: Path) -> None:
    aggregator = Aggregator().grow(6)
    copied(tmp_path, aggregator)
    del aggregator.entries[4:]
    with pytest.raises(CairnError, match="replaced or rolled back: entry 6 is not"):
        copied(tmp_path, aggregator)


@pytest.mark.parametrize("now", [2, 5, 9])
def test_a_lost_copy_is_fetched_again_and_held_against_the_signed_head(
    tmp_path: Path, now: int
) -> None:
    copied(tmp_path, Aggregator().grow(5))
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(CairnError, match="replaced or rolled back: entry 5 is not"):
        copied(tmp_path, Aggregator().grow(now, word="other"))
    (tmp_path / "ledger.jsonl").unlink(missing_ok=True)
    assert copied(tmp_path, Aggregator().grow(9)).number == 9


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_only_complete_lines_count_after_a_crash(tmp_path: Path, cut: int) -> None:
    aggregator = Aggregator().grow(4)
    copied(tmp_path, aggregator)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    copied(tmp_path, aggregator)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"kind": "open"', '"kind": "opan"', "entry 1 does not follow"),
        ('{"number": 3', '{"number": 4', "entry 3 is missing"),
        ('"head": "', '"head": "zz', "entry 1 cannot be read"),
    ],
)
def test_a_copy_that_was_changed_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    copied(tmp_path, Aggregator().grow(4))
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"ledger\.jsonl: {words}.* Move the file away"):
        LedgerMirror(tmp_path, "clinics")


def test_a_copy_that_is_not_that_of_its_signed_head_is_named(tmp_path: Path) -> None:
    copied(tmp_path, Aggregator().grow(4))
    (tmp_path / "other").mkdir()
    copied(tmp_path / "other", Aggregator().grow(4, word="other"))
    (tmp_path / "other" / "ledger.jsonl").replace(tmp_path / "ledger.jsonl")
    with pytest.raises(UsageError, match=r"entry 4 is not the one of ledger_head\.json"):
        LedgerMirror(tmp_path, "clinics")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"payloadType": 1}'])
def test_a_damaged_head_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger_head.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"ledger_head\.json"):
        LedgerMirror(tmp_path, "clinics")


def test_another_federations_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidMessage, match="federation 'banks'"):
        copied(tmp_path, Aggregator(federation="banks").grow(1))


def test_an_aggregator_that_keeps_entries_back_does_not_hold_the_coordinator_up(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidMessage, match="keeps back entry 1"):
        copied(tmp_path, Aggregator(page=0).grow(2))


@pytest.mark.parametrize("body", [b"\xff", b"[]", b"x"])
def test_an_entry_that_could_not_be_read_again_is_not_written(tmp_path: Path, body: bytes) -> None:
    aggregator = Aggregator()
    head = sha256(bytes(32) + b"open\x00" + body).digest()
    aggregator.entries.append(Entry(1, "open", body, head))
    with pytest.raises(InvalidMessage, match="entry 1 is not"):
        copied(tmp_path, aggregator)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_copy_tells_whom_a_round_was_opened_with(tmp_path: Path) -> None:
    aggregator = Aggregator().grow(2)
    facts = {"manifest_digest": "ab" * 32, "cohort": ["bob", "carol"]}
    body = json.dumps(facts).encode()
    head = sha256(aggregator.entries[-1].head + b"open\x00" + body).digest()
    aggregator.entries.append(Entry(3, "open", body, head))
    copy = copied(tmp_path, aggregator.grow(2))
    assert copy.cohort_of(b"\xab" * 32) == ["bob", "carol"]
    with pytest.raises(InvalidMessage, match="does not open the round"):
        copy.cohort_of(bytes(32))
