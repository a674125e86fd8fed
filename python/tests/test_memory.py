"""Shows that the planned memory is what the runtime allocates, byte for byte, on every kind of mesh and after the ragged arena has grown."""

import re

import pytest

from common import CLASSES, GOLDEN, ranks_of
from moira import compile_plan, inspect_plan, run_plan

MESHES = ["", "ep=2", "tp=2", "dp=2,ep=2,tp=2"]


def allocated(stderr):
    """{rank: bytes that its allocators handed out}, from moe-run's summary."""
    return {int(rank): int(count) for rank, count in re.findall(r"rank (\d+) allocated (\d+) bytes", stderr)}


def planned(plan, bound):
    """Bytes of a rank when the ragged bound is `bound`: arenas are linear in it. bound None: the initial one."""
    program = next(p for p in inspect_plan(plan)["programs"] if not p["reference"])
    memory, first, last = program["memory_per_rank"], program["bound_initial"], program["bound_max"]
    if bound is None or first == last:
        return memory["total_bytes"]
    growth = memory["total_bytes_at_max_bound"] - memory["total_bytes"]
    assert growth % (last - first) == 0
    return memory["total_bytes"] + growth // (last - first) * (bound - first)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: m or "one")
@pytest.mark.parametrize("options", [(), ("--ragged-bound=1",)], ids=["bound", "grown"])
def test_planned_peak_is_what_is_allocated(kind, mesh, options, tmp_path):
    plan = tmp_path / "p.moeplan"
    compile_plan(GOLDEN / kind, plan, "--batch=2", "--seq=24", *([f"--mesh={mesh}"] if mesh else []), *options)
    finished = run_plan(plan, GOLDEN / kind, GOLDEN / kind / "io.safetensors", tmp_path / "o.safetensors")
    bound = re.search(r"\bbound (\d+)", finished.err)
    want = planned(plan, int(bound.group(1)) if bound else None)
    assert allocated(finished.err) == {rank: want for rank in range(ranks_of(mesh))}
