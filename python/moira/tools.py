"""Runs Moira's programs and gives back what they said.

Belongs here: finding the programs, time limits, mpirun, exit codes and error ids. Does not: anything about models or files.
The programs are found in $MOIRA_BIN, else in build/bin of the source tree, else on PATH.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]


@dataclass
class Finished:
    """How a program ended. `code` is negative after a signal, as subprocess has it."""

    command: list
    code: int
    out: str
    err: str

    @property
    def error_ids(self):
        """The distinct MOE-nnnn ids on stderr, in the order in which they came."""
        return list(dict.fromkeys(re.findall(r"error (MOE-\d{4}):", self.err)))

    def __str__(self):
        return f"$ {' '.join(map(str, self.command))}\nexit code {self.code}\n{self.err[-4000:]}"


class Failed(RuntimeError):
    """A program ended with another code than 0; `finished` tells how."""

    def __init__(self, finished):
        super().__init__(str(finished))
        self.finished = finished


def program(name):
    """The path of one of Moira's programs."""
    for folder in (os.environ.get("MOIRA_BIN"), TREE / "build" / "bin"):
        if folder and (Path(folder) / name).exists():
            return str(Path(folder) / name)
    found = shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} is neither in $MOIRA_BIN, build/bin nor on PATH; run scripts/quickstart first")
    return found


def run_tool(name, *args, timeout=120, mpi=None, env=None, cwd=None):
    """Runs a program and returns a Finished, whatever its exit code. `mpi`: number of processes under mpirun.

    Raises subprocess.TimeoutExpired after `timeout` seconds.
    """
    command = [program(name), *map(str, args)]
    if mpi:
        command = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-np", str(mpi), *command]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=timeout, cwd=cwd, env={**os.environ, **(env or {})}
    )
    return Finished(command, done.returncode, done.stdout, done.stderr)


def _checked(*args, **kwargs):
    finished = run_tool(*args, **kwargs)
    if finished.code != 0:
        raise Failed(finished)
    return finished


def compile_plan(model, plan, *options, **kwargs):
    """moe-opt MODEL OPTIONS -o PLAN; raises Failed if it does not succeed."""
    return _checked("moe-opt", model, *options, "-o", plan, **kwargs)


def run_plan(plan, weights, inputs, outputs, *options, **kwargs):
    """moe-run PLAN with weights, inputs and outputs; raises Failed if it does not succeed."""
    files = (f"--weights={weights}", f"--inputs={inputs}", f"--outputs={outputs}")
    return _checked("moe-run", plan, *files, *options, **kwargs)


def inspect_plan(plan, *options, **kwargs):
    """What `moe-inspect PLAN --json` says, as a dict; raises Failed if it does not succeed."""
    return json.loads(_checked("moe-inspect", plan, "--json", *options, **kwargs).out)
