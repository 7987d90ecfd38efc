"""The words that ledgers, files and logs have for the values of the wire's enums."""

import pytest

from cairn.protocol.words import ENCODINGS, PHASES, WEIGHTINGS, reason_of_word, reason_word, word_of
from cairn.v1 import round_pb2 as pb


def test_the_words_are_those_of_every_version() -> None:
    assert list(PHASES) == ["train", "evaluate"]
    assert list(ENCODINGS) == ["whole", "bf16_deltas", "int8_deltas"]
    assert list(WEIGHTINGS) == ["equal", "examples"]
    assert word_of(pb.Rule, pb.RULE_MEAN) == "mean"
    assert reason_word(pb.REASON_LEASE_EXPIRED) == "LEASE_EXPIRED"


@pytest.mark.parametrize("reason", pb.Reason.values())
def test_a_reason_is_read_back_from_its_word(reason: int) -> None:
    assert reason_of_word(reason_word(reason)) == reason


@pytest.mark.parametrize("word", ["", "lease_expired", "REASON_LEASE_EXPIRED", "NO_SUCH_REASON"])
def test_any_other_word_is_no_reason(word: str) -> None:
    assert reason_of_word(word) == pb.REASON_UNSPECIFIED


def test_a_value_that_this_version_does_not_know_has_no_word() -> None:
    with pytest.raises(ValueError, match="12345"):
        reason_word(12345)
    with pytest.raises(ValueError, match="12345"):
        word_of(pb.Phase, 12345)
