"""The one exception for everything that a user can put right."""

from collections.abc import Sequence


class UserError(Exception):
    """Bad input: one sentence that names the offender and what would be right.

    Command lines catch it once, print it on stderr without a traceback and exit with code 2.
    """


def check_rules(rules: Sequence[tuple[bool, str, object]]) -> None:
    """Raise a :class:`UserError` for the first (holds, rule, value) that does not hold."""
    for holds, rule, value in rules:
        if not holds:
            raise UserError(f"{rule}, got {value}")
