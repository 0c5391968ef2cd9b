"""What one rank finds out, all ranks hear: two gloo processes."""

import json
import os
import socket
import subprocess
import sys
import textwrap

SCRIPT = """
import errno, json, sys
import torch
from crosschannel.errors import UserError
from crosschannel.training.ranks import join_world, leave_world

world, heard = join_world(torch.device("cpu")), []

def listen(call):
    try:
        heard.append(call())
    except UserError as error:
        heard.append(str(error))

def lost():
    raise OSError(errno.ENOSPC, "No space left on device", "/full/file")

def batches():
    yield 1
    if world.rank == 1:
        raise UserError("rank 1 has no more images")
    yield 2

listen(lambda: world.from_main(lambda: 7))
listen(lambda: world.from_main(lost))
listen(lambda: list(world.together(batches())))
listen(lambda: list(world.together(range(3))))
json.dump(heard, open(sys.argv[1], "w"))
leave_world()
"""


def test_a_value_an_error_and_the_end_of_the_images_reach_all_ranks(tmp_path):
    (tmp_path / "ranks.py").write_text(textwrap.dedent(SCRIPT))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, tmp_path / "ranks.py", tmp_path / f"{rank}.json"],
            env={**os.environ, **address, "WORLD_SIZE": "2", "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    expected = [7, "/full/file: No space left on device", "rank 1 has no more images", [0, 1, 2]]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected] * 2
