"""The run folder of a command on several ranks."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crosschannel.runs.folder import RunFolder
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.training.ranks import World


@contextlib.contextmanager
def open_run(
    path: Path, command: str, config: Any, world: World, flag: InterruptFlag | None = None
) -> Iterator[RunFolder]:
    """Open a command's run folder on all ranks. Rank 0 locks it; its errors are raised on every rank. Signals are
    caught for as long as the lock is held.

    Raises:
        UserError: another process holds it, it belongs to something else, or it was started with other settings.
    """
    run = None

    def take() -> None:
        nonlocal run
        run = RunFolder(path, command, flag=flag)
        if run.resuming:
            run.check_fixed_keys(config)

    with flag or InterruptFlag() as flag:
        try:
            world.broadcast_from_main(take)
            run = run or RunFolder(path, command, hold=False, flag=flag)
            yield run
        finally:
            if run:
                run.close()
