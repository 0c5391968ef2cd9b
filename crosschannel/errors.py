"""The one exception for everything that a user can put right."""

import contextlib
import re
from collections.abc import Iterator

WORKER_LOST = 71  # exit code where the system killed a loader worker (sysexits.h: EX_OSERR): not the command's fault
WORKER_ERROR_PREFIX = "DataLoader worker"  # first words of torch's message about it


class UserError(Exception):
    """Bad input: one sentence that names the offender and what would be right.

    Command lines catch it once, print it on stderr without a traceback and exit with code 2.
    """


def describe(value: object) -> str:
    """Describe a value of the wrong type, for a message."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)[:80]
    if isinstance(value, type):
        return f"the class {value.__name__} (give an instance)"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} of shape {tuple(value.shape)}"
    return name


def file_problem(error: BaseException) -> str:
    """What a user can put right about files, disks and memory, in a sentence; empty for anything else.

    Libraries wrap the system's complaint in errors of their own (torch in RuntimeErrors, safetensors in its words).
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError | TimeoutError) and cause.strerror:
            return f"{cause.filename}: {cause.strerror}" if cause.filename else f"cannot write: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    native = re.search(r"(?:^|: )([^:]*) \(os error \d+\)", str(error))  # Rust's
    return f"cannot write: {native[1]}" if native else ""


def is_worker_loss(error: BaseException) -> bool:
    """Whether an error says that the system killed a DataLoader worker, wherever torch reports it."""
    pattern = rf"{WORKER_ERROR_PREFIX}.*(killed by signal|exited unexpectedly)"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error), re.DOTALL) is not None


@contextlib.contextmanager
def wrap_external_errors(what: str) -> Iterator[None]:
    """Run other people's code: whatever it raises, and its ``sys.exit``, becomes a UserError about ``what``."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        try:
            said = " ".join(str(error).split())
        except Exception:  # such as an exception that cannot say what it is
            said = ""
        raise UserError(f"{what}: {type(error).__name__}" + (f": {said[:300]}" if said else "")) from error
