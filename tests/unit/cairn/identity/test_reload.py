"""A value that follows its files."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cairn.errors import UsageError
from cairn.identity.reload import Reloading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "number"
    path.write_text("1")
    return path


def number_in(file: Path) -> Reloading[int]:
    def read() -> int:
        number = int(file.read_text())
        if number < 0:
            raise UsageError(f"{file}: {number} is below zero")
        return number

    return Reloading(1, [file], read)


def test_it_is_what_the_file_says_now(file: Path) -> None:
    renewal = number_in(file)
    for number in (1, 2, 3, 2):
        file.write_text(str(number))
        assert renewal.current() == number


def test_a_change_between_the_first_reading_and_the_first_question_is_seen(file: Path) -> None:
    renewal = number_in(file)
    file.write_text("5")
    assert renewal.current() == 5


def test_an_unchanged_file_is_not_parsed_again(file: Path) -> None:
    answers = iter([1])  # to ask a second time raises, which is logged
    renewal = Reloading(1, [file], lambda: next(answers))
    with capture_logs() as logs:
        for _ in range(5):
            assert renewal.current() == 1
    assert not logs


@pytest.mark.parametrize("content", ["-1", "no number", ""])
def test_a_bad_file_leaves_the_value_and_is_logged_once(file: Path, content: str) -> None:
    renewal = number_in(file)
    file.write_text(content)
    with capture_logs() as logs:
        for _ in range(5):
            assert renewal.current() == 1
    assert [line["log_level"] for line in logs] == ["error"]
    file.write_text("2")
    assert renewal.current() == 2


def test_a_file_that_is_gone_for_a_moment_does_no_harm(file: Path) -> None:
    renewal = number_in(file)
    file.unlink()
    assert renewal.current() == 1
    file.write_text("3")
    assert renewal.current() == 3


def test_what_can_be_read_later_without_a_change_is_taken_then(file: Path) -> None:
    """A key that others could read is taken as soon as its mode is right."""
    trouble = [UsageError("chmod 600"), UsageError("chmod 600")]

    def read() -> int:
        if trouble:
            raise trouble.pop()
        return 2

    renewal = Reloading(1, [file], read)
    assert [renewal.current() for _ in range(3)] == [1, 1, 2]
