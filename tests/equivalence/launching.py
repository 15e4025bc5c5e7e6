"""Starts a script in two processes that find each other through gloo, as torchrun does."""

import os
import subprocess
import sys
from pathlib import Path


def in_two_processes(script: str, *words: str) -> None:
    """Run a script of this folder with these words in two processes of one thread each; fail with what it said.

    It finds the tests' own modules and the package as pytest does.
    """
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests, tests.parent)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [*launcher, script, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
