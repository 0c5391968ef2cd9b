"""The one exception for everything that a user can put right."""


class UserError(Exception):
    """Bad input: one sentence that names the offender and what would be right.

    Command lines catch it once, print it on stderr without a traceback and exit with code 2.
    """
