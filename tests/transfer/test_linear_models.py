"""Processes that fit classifiers start from any kind of main module."""

import subprocess
import sys

import numpy as np
import pytest

from transfer.linear_models import Processes

SCRIPT = """
import numpy
from transfer.linear_models import Processes
print("main")
with Processes(2) as processes:
    shared = processes.share(numpy.arange(5.0))
    print(processes.run(numpy.quantile, [shared], [(0.5,), (1.0,)]))
"""


@pytest.mark.parametrize("way", ["stdin", "dash", "file", "command", "exec"])
def test_a_script_without_a_guard_may_start_processes(tmp_path, way):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    words = {"stdin": [], "dash": ["-"], "file": [str(file)], "command": ["-c", SCRIPT]}
    words["exec"] = ["-c", f"exec(open({str(file)!r}).read())"]
    from_stdin = SCRIPT if way in ("stdin", "dash") else ""
    done = subprocess.run([sys.executable, *words[way]], input=from_stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    main, values = done.stdout.splitlines()
    assert main == "main" and "2.0" in values and "4.0" in values


def test_the_main_module_is_restored_afterwards():
    main = sys.modules["__main__"]
    with Processes(2) as processes:
        assert processes.run(np.add, [processes.share(np.ones(3))], [(1,)])[0].tolist() == [2, 2, 2]
        assert sys.modules["__main__"] is main
