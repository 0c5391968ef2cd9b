"""What one rank finds out, all ranks hear: two gloo processes."""

import json
import os
import sys
from pathlib import Path

from forked import check_on_ranks

SCRIPT = """
import errno, json, sys
import torch
from forked import check_on_ranks
from forked import check_on_ranks
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

listen(lambda: world.broadcast_from_main(lambda: 7))
listen(lambda: world.broadcast_from_main(lost))
listen(lambda: list(world.zip_ranks(batches())))
listen(lambda: list(world.zip_ranks(range(3))))
json.dump(heard, open(sys.argv[1], "w"))
leave_world()
"""


def run_ranks(script: str, folder: Path) -> list:
    """Run a script in two processes; return the JSON that each one writes, by rank."""

    def rank() -> int:
        sys.argv[1:] = [str(folder / f"{os.environ['RANK']}.json")]
        exec(compile(script, "ranks", "exec"), {})
        return 0

    check_on_ranks(rank)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_a_value_an_error_and_the_end_of_the_images_reach_all_ranks(tmp_path):
    expected = [7, "/full/file: No space left on device", "rank 1 has no more images", [0, 1, 2]]
    assert run_ranks(SCRIPT, tmp_path) == [expected] * 2


ALONE = """
import json, os, sys, time
import numpy as np
import torch
import torch.distributed as dist
import crosschannel, transfer
from transfer import protocol

protocol.PATIENCE = 1.0
pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
torch.manual_seed(0)
net = crosschannel.wrap(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), size=16)
outcomes = []

def call():
    try:
        data = (pixels[:16], np.arange(16) % 2), (pixels[16:], np.arange(8) % 2)
        outcomes.append(transfer.knn(net, data, "0", k=[1], workers=0).metrics)
    except crosschannel.UserError as error:
        outcomes.append(str(error))

rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
if rank == 0:
    call()
dist.barrier()
if rank == 1:
    call()  # too late for that of rank 0
total = torch.ones(1)
dist.all_reduce(total)
protocol.PATIENCE = 60.0
call()
json.dump([outcomes, total.item(), dist.is_initialized()], open(sys.argv[1], "w"))
dist.destroy_process_group()
"""


def test_a_call_of_only_one_rank_is_refused_and_the_group_still_works(tmp_path):
    by_rank = run_ranks(ALONE, tmp_path)
    for rank, (outcomes, total, is_initialized) in enumerate(by_rank):
        assert outcomes[0].startswith("not all of 2 ranks made this call within 1 s of each other")
        assert f"this is rank {rank}" in outcomes[0] and "every rank must make the same calls" in outcomes[0]
        assert outcomes[1].keys() == {"0/knn1"} and total == 2 and is_initialized
    assert by_rank[0][0][1] == by_rank[1][0][1]


JOINS = """
import json, sys
import torch, torch.distributed as dist
from crosschannel.training.ranks import joined_world

with joined_world(torch.device("cpu"), 60.0) as world:
    outcomes = world.gather(world.rank)
json.dump([outcomes, dist.is_initialized()], open(sys.argv[1], "w"))
"""


def test_a_call_leaves_the_group_that_it_joined(tmp_path):
    assert run_ranks(JOINS, tmp_path) == [[[0, 1], False]] * 2
