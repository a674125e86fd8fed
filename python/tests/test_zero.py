"""Shows that ZeRO changes where things lie and nothing else: every stage on every mesh follows the golden trajectories, on one mesh all stages give the
same bits, checkpoints go from any stage to any other, and memory shrinks by the number of replicas.
"""

import re

import numpy as np
import pytest

from common import GOLDEN, ranks_of
from moira import checkpoint, compile_plan, inspect_plan
from test_train import compiled, error, losses, tolerance, train

KINDS = ("olmoe", "mixtral", "deepseek_v3", "nllb_moe")
MESHES = ("ep=2", "dp=2", "dp=2,ep=2", "tp=2", "ep=2,tp=2", "dp=2,ep=2,tp=2")
STAGES = (0, 1, 2, 3)


def states(folder):
    """{name: whole tensor} of a training checkpoint, put together from the boxes of its rank files."""
    boxes = {}
    for file in sorted(folder.glob("rank-*.safetensors")):
        for name, data in checkpoint.read(file).items():
            whole, _, box = name.partition("[")
            spans = [tuple(map(int, span.split(":"))) for span in re.findall(r"\d+:\d+", box)] or [(0, n) for n in data.shape]
            boxes.setdefault(whole, []).append((spans, data))
    tensors = {}
    for name, parts in boxes.items():
        shape = [max(spans[d][1] for spans, _ in parts) for d in range(len(parts[0][0]))]
        tensors[name] = np.full(shape, np.nan, np.float32)
        for spans, data in parts:
            tensors[name][tuple(slice(*span) for span in spans)] = data
        assert not np.isnan(tensors[name]).any()
    return tensors


def assert_same(got, want):
    assert got.keys() == want.keys()
    assert all(got[name].tobytes() == want[name].tobytes() for name in want)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_golden_trajectory(kind, mesh, stage, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["adamw_losses"]
    # With a bound of one row every first step must be repeated: a state that was written too early would show.
    plan = compiled(kind, tmp_path, f"--mesh={mesh}", f"--zero={stage}", "--ragged-bound=1")
    steps = train(kind, plan, tmp_path / "m.jsonl", "--steps=10")
    assert error(losses(steps), want) <= tolerance(kind)


@pytest.mark.parametrize("mesh", ["dp=2", "dp=2,ep=2", "dp=2,ep=2,tp=2"])
def test_all_stages_give_the_same_bits(mesh, tmp_path):
    """Gradients are added up in the order of ranks either way; updates are element-wise."""
    found = []
    for stage in STAGES:
        plan = compiled("olmoe", tmp_path, f"--mesh={mesh}", f"--zero={stage}")
        folder = tmp_path / f"stage{stage}"
        train("olmoe", plan, tmp_path / "m.jsonl", "--steps=3", f"--checkpoint={folder}")
        found.append(states(folder / "step-3"))
        assert_same(found[-1], found[0])


def test_any_stage_goes_on_from_any_other(tmp_path):
    """On one mesh to the bit, whatever stage each part of the run had."""
    mesh = "--mesh=dp=2,ep=2"
    whole = compiled("olmoe", tmp_path, mesh)
    train("olmoe", whole, tmp_path / "m.jsonl", "--steps=5", f"--checkpoint={tmp_path}/whole")
    for i, stage in enumerate((3, 1, 0, 3, 2)):
        plan = compiled("olmoe", tmp_path, mesh, f"--zero={stage}")
        options = (f"--steps={i + 1}", f"--checkpoint={tmp_path}/parts", *(["--resume"] if i else []))
        train("olmoe", plan, tmp_path / "m.jsonl", *options)
    assert_same(states(tmp_path / "parts" / "step-5"), states(tmp_path / "whole" / "step-5"))


def test_another_mesh_goes_on_from_a_split_state(tmp_path):
    want = checkpoint.read(GOLDEN / "olmoe" / "io.safetensors")["adamw_losses"]
    layouts = (("dp=2,ep=2", 3), ("", 0), ("dp=2,ep=2,tp=2", 3), ("dp=2", 1), ("", 0))
    for i, (mesh, stage) in enumerate(layouts):
        plan = compiled("olmoe", tmp_path, f"--zero={stage}", *([f"--mesh={mesh}"] if mesh else []))
        options = (f"--steps={2 * i + 2}", f"--checkpoint={tmp_path}/run", *(["--resume"] if i else []))
        steps = train("olmoe", plan, tmp_path / "m.jsonl", *options)
    assert error(losses(steps), want) <= 1e-4


def held(plan):
    """{role: copies of its states that all ranks together hold}, and the bytes of a rank"""
    program = next(p for p in inspect_plan(plan)["programs"] if not p["reference"])
    memory = program["memory_per_rank"]
    return {c["role"]: c["bytes"] * program["ranks"] / c["whole_bytes"] for c in memory["states"]}, memory["total_bytes"]


@pytest.mark.parametrize("mesh", ["dp=2", "dp=4", "dp=2,ep=2"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_shrinks_by_the_replicas(kind, mesh, tmp_path):
    batch = "--batch=4"
    found = {}
    for stage in STAGES:
        plan = tmp_path / "p.moeplan"
        encoder = ("--dec-seq=12",) if kind == "nllb_moe" else ()
        compile_plan(GOLDEN / kind, plan, batch, "--seq=24", *encoder, "--task=train", f"--mesh={mesh}", f"--zero={stage}")
        found[stage] = held(plan)
    assert all(1 < copies <= ranks_of(mesh) for copies in found[0][0].values())
    assert found[0][0]["optimizer"] == found[0][0]["weights"]
    for stage in (1, 2):
        assert found[stage][0] == {"weights": found[0][0]["weights"], "optimizer": 1}
    assert found[3][0] == {"weights": 1, "optimizer": 1}
    assert found[3][1] < found[1][1] < found[0][1]
