"""A loader's workers are forked while the threads of collectives still free their tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
from crosschannel.data import CentreCrop, Stream, open_images
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import join_world

world = join_world(torch.device("cpu"))
_, images = open_images(sys.argv[1], 0.05)
net = torch.nn.Conv2d(3, 8, 3)
for _ in range(300):
    world.copy_module_from_main(net)
    assert sum(found for _, found in HeldOut(Stream(images, CentreCrop(48, 56)), len, world, 4, 1)) > 0
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_worker_waits_for_a_lock_that_nobody_holds(photo_folder, tmp_path):
    """On Python 3.11 about one in a hundred rounds hung before forks waited, on two cores that others keep busy."""
    path = tmp_path / "ranks.py"
    path.write_text(SCRIPT)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", path, photo_folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *map(str, words)], env=environment, check=True, timeout=500)
    finally:
        for other in others:
            other.kill()
            other.wait()
