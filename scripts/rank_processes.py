"""Finds moe-run's rank processes by a mark in their environment: what the scripts that kill ranks share. Linux, Python 3 only."""

import glob
import os
import shutil

HERE = os.path.dirname(os.path.abspath(__file__))
TAG = "MOIRA_CHECK_TAG"


class Wrong(Exception):
    """A run that ended otherwise than promised."""


def default_moe_run():
    for path in (os.path.join(HERE, "bin", "moe-run"), os.path.join(os.path.dirname(HERE), "build", "bin", "moe-run")):
        if os.path.exists(path):
            return path
    return shutil.which("moe-run") or "moe-run"


def rank_processes(tag):
    """{rank: pid} of the moe-run processes that carry our tag and are ranks."""
    found = {}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            with open(folder + "/environ", "rb") as file:
                variables = dict(v.split(b"=", 1) for v in file.read().split(b"\0") if b"=" in v)
            if variables.get(TAG.encode()) != tag.encode():
                continue
            with open(folder + "/cmdline", "rb") as file:
                if not file.read().split(b"\0")[0].endswith(b"moe-run"):
                    continue
        except (OSError, ValueError):
            continue
        for name in (b"OMPI_COMM_WORLD_RANK", b"MOIRA_RANK", b"RANK"):
            if name in variables:
                found[int(variables[name])] = int(os.path.basename(folder))
                break
    return found


def has_met(pid):
    """Whether the rank listens to the others: the thread that does has a name."""
    for path in glob.glob(f"/proc/{pid}/task/*/comm"):
        try:
            with open(path) as file:
                if file.read().strip() == "moira-news":
                    return True
        except OSError:
            pass
    return False


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
