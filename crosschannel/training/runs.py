"""Run folders of commands that run on several ranks."""

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
    """Open the run folder of a command on all ranks.

    Rank 0 locks the folder, and its errors are raised on every rank. Until the block ends, signals set ``flag``.

    Raises:
        UserError: the folder is locked by another process, is not a run of this command, or has a different config.
    """
    run = None

    def lock_folder() -> None:
        nonlocal run
        run = RunFolder(path, command, flag=flag)
        if run.resuming:
            run.check_fixed_keys(config)

    with flag or InterruptFlag() as flag:
        try:
            world.broadcast_from_main(lock_folder)
            run = run or RunFolder(path, command, hold=False, flag=flag)
            yield run
        finally:
            if run:
                run.close()
