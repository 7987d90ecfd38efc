"""How the commands end on a mistake of the person at the keyboard, and on our other errors."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import click

from cairn.errors import CairnError, UsageError
from cairn.runtime.quoting import quoted, quoted_lines

P = ParamSpec("P")


class Mistake(click.ClickException):
    """A mistake of the person at the keyboard: one sentence, exit status 2."""

    exit_code = 2


def mistakes_explained(command: Callable[P, None]) -> Callable[P, None]:
    @functools.wraps(command)
    def explained(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UsageError as error:
            raise Mistake(quoted_lines(str(error))) from error
        except CairnError as error:
            raise Mistake(quoted(str(error))) from error

    return explained
