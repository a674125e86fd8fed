"""Shows that ranks which are killed, stopped or miscounted at random moments end every process soon, with one line that names the cause and with
the promised exit codes; scripts/check-failures.py checks each run and prints its seed. On the host; gpu-bundle takes the same script to CUDA devices."""

import shutil
import subprocess
import sys

import pytest

from common import GOLDEN, ROOT
from moira import compile_plan
from moira.tools import program


@pytest.mark.parametrize("launcher, options", [
    ("mpirun", ["--count=3"]),
    ("mpirun", ["--count=1", "--kinds=kill", "--victims=0"]),
    ("processes", ["--count=2", "--victims=0"]),
    ("torchrun", ["--count=2", "--victims=0"]),
])
def test_lost_ranks_end_as_promised(launcher, options, tmp_path):
    if launcher == "mpirun" and not shutil.which("mpirun"):
        pytest.skip("no mpirun here")
    plan = tmp_path / "p.moeplan"
    compile_plan(GOLDEN / "mixtral", plan, "--batch=2", "--seq=24", "--mesh=ep=4")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check-failures.py", plan, f"--weights={GOLDEN / 'mixtral'}",
         f"--inputs={GOLDEN / 'mixtral' / 'io.safetensors'}", f"--launcher={launcher}", f"--moe-run={program('moe-run')}", "--timeout=2",
         "--window=0.5", *options],
        capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
