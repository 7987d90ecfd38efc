"""What others wrote, as it is shown to a person."""

import pytest

from cairn.runtime.quoting import quoted, quoted_lines, say
from cairn.v1 import round_pb2 as pb
from coordinator.console import show
from coordinator.events import OwnerNotCounted, RoundFinished
from tests.unit.cairn.runtime.test_process import run

COMMAND = "\x1b[2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice: 0.25 of ünïcode 漢字", "alice: 0.25 of ünïcode 漢字"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("one\r\ntwo", r"one\r\ntwo"),
        ("\x00\x07\x7f\x9b", r"\x00\x07\x7f\x9b"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("a\u2028b\u2029c\u200bd\ufeff", r"a\u2028b\u2029c\u200bd\ufeff"),
        ("\ud800 half a pair", r"\ud800 half a pair"),
        ("\U000e0041 a tag", r"\U000e0041 a tag"),
        ("a\tb", "a\tb"),
        ("", ""),
    ],
)
def test_only_printable_characters_are_left(text: str, shown: str) -> None:
    assert quoted(text) == shown
    assert shown.isprintable() or "\t" in shown


def test_a_long_text_has_an_end() -> None:
    assert quoted("a" * 10_000) == "a" * 4000 + "… (6000 more characters)"
    assert len(quoted("\x1b" * 10_000_000)) < 17_000


def test_lines_of_ours_stay_lines() -> None:
    assert quoted_lines(f"one\ntwo{COMMAND}\u2028three") == "one\ntwo\\x1b[2J\\u2028three"


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{COMMAND}\nFinished.")
    assert capsys.readouterr().out == "\\x1b[2J\\nFinished.\n"


def test_the_console_shows_names_of_the_aggregators_in_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(OwnerNotCounted(1, f"{COMMAND}\neve", pb.REASON_DEADLINE))
    metrics = {"loss": 0.5, f"auc{COMMAND}": 0.25}
    show(RoundFinished(1, 3, 1, contributors=2, group=None, metrics=metrics, seconds=1.0))
    assert capsys.readouterr().out == (
        "Round 1: \\x1b[2J\\neve was not counted (DEADLINE)\n"
        "Round 1/3   2 owners   auc\\x1b[2J 0.2500   loss 0.5000   1.00 s\n"
    )


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_log_shows_no_byte_that_others_chose(style: str) -> None:
    code = (
        "import structlog; from cairn.runtime.logging import start_logging\n"
        "start_logging(federation='clinics', node='bob')\n"
        "log = structlog.get_logger(); words = chr(27) + '[2J' + chr(10) + chr(0x202e)\n"
        "log.info(words, reason=words, **{words: words}, many=[words])\n"
        "try: raise ValueError(words)\n"
        "except ValueError: log.exception('failed')\n"
    )
    ended = run(code, CAIRN_LOG=style)
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stderr
    assert "\u202e" not in ended.stderr
    assert "[2J" in ended.stderr
