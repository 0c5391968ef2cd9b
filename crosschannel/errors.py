"""Exception for errors that users can fix, and conversion of other errors to it."""

import contextlib
import re
from collections.abc import Iterator

WORKER_LOST = 71  # exit code if the system killed a DataLoader worker (EX_OSERR of sysexits.h)
WORKER_ERROR_PREFIX = "DataLoader worker"  # start of torch's message for a killed worker


class UserError(Exception):
    """Bad input. The message is one sentence that states the bad value or file, the problem and the remedy.

    Command lines print it on stderr without a traceback, and exit with code 2.
    """


def describe(value: object) -> str:
    """Describe a value of the wrong type for an error message."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)[:80]
    if isinstance(value, type):
        return f"the class {value.__name__} (pass an instance)"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} of shape {tuple(value.shape)}"
    return name


def file_problem(error: BaseException) -> str:
    """Describe a file, disk or memory error in one sentence, or return "" for any other error.

    Libraries wrap operating-system errors in their own exceptions: torch in a RuntimeError, safetensors in its message.
    """
    if isinstance(error, MemoryError):
        return "out of memory"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError | TimeoutError) and cause.strerror:
            return f"{cause.filename}: {cause.strerror}" if cause.filename else f"cannot write: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    rust_error = re.search(r"(?:^|: )([^:]*) \(os error \d+\)", str(error))
    return f"cannot write: {rust_error[1]}" if rust_error else ""


def is_worker_loss(error: BaseException) -> bool:
    """Whether an error is torch's report that the system killed a DataLoader worker."""
    pattern = rf"{WORKER_ERROR_PREFIX}.*(killed by signal|exited unexpectedly)"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error), re.DOTALL) is not None


@contextlib.contextmanager
def wrap_external_errors(context: str) -> Iterator[None]:
    """Convert any exception from third-party code, even ``SystemExit``, to a UserError that starts with ``context``."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        try:
            message = " ".join(str(error).split())
        except Exception:  # the error's own __str__ may fail
            message = ""
        raise UserError(f"{context}: {type(error).__name__}" + (f": {message[:300]}" if message else "")) from error
