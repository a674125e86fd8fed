"""Shows that ZeRO changes where things lie and nothing else: every stage on every mesh follows the golden trajectories, on one mesh all stages give the
same bits, checkpoints go from any stage to any other, and memory shrinks by the number of replicas.
"""

import re

import numpy as np
import pytest

from common import GOLDEN, ranks_of
from moira import checkpoint, compile_plan, inspect_plan, run_tool
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


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mesh", ["ep=2", "ep=2,tp=2"])
@pytest.mark.parametrize("kind", KINDS)
def test_golden_trajectory_in_micro_batches(kind, mesh, stage, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["adamw_losses"]
    plan = compiled(kind, tmp_path, f"--mesh={mesh}", f"--zero={stage}", "--micro-batches=2", "--ragged-bound=1")
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


@pytest.mark.parametrize("stage", STAGES)
def test_bf16(stage, tmp_path):
    """The narrow copy of a weight is what is gathered."""
    found = []
    for zero in (0, stage):
        plan = compiled("olmoe", tmp_path, "--mesh=dp=2,ep=2", "--dtype=bf16", f"--zero={zero}")
        found.append(losses(train("olmoe", plan, tmp_path / "m.jsonl", "--steps=5")))
    assert (found[0] == found[1]).all()


def test_clipping_has_the_norm_of_parts(tmp_path):
    norms = []
    for stage in STAGES:
        plan = compiled("olmoe", tmp_path, "--mesh=dp=2,ep=2,tp=2", f"--zero={stage}", "--clip-norm=0.5")
        norms.append([step["grad_norm"] for step in train("olmoe", plan, tmp_path / "m.jsonl", "--steps=4")])
    assert np.allclose(norms, norms[0], rtol=1e-6)


def test_adafactor_is_refused(tmp_path):
    finished = run_tool("moe-opt", GOLDEN / "olmoe", "--task=train", "--optimizer=adafactor", "--zero=1", "-o", tmp_path / "p.moeplan")
    assert finished.code == 1 and finished.error_ids == ["MOE-0102"]


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
    # The optimizer keeps nothing of a bias that no loss moves, and counts steps of experts that are modules of their own.
    assert found[0][0]["optimizer"] == pytest.approx(found[0][0]["weights"], rel=1e-3)
    for stage in (1, 2):
        assert found[stage][0] == {"weights": found[0][0]["weights"], "optimizer": 1}
    assert found[3][0] == {"weights": pytest.approx(1, rel=1e-3), "optimizer": 1}  # that bias stays whole
    assert found[3][1] < found[2][1] == found[1][1] < found[0][1]


def test_second_stage_splits_sums_over_micro_batches(tmp_path):
    """Stages 1 and 2 differ in nothing else."""
    found = {}
    for stage in STAGES:
        plan = tmp_path / "p.moeplan"
        options = ("--batch=8", "--seq=24", "--task=train", "--micro-batches=2", "--mesh=dp=2,ep=2", f"--zero={stage}")
        compile_plan(GOLDEN / "olmoe", plan, *options)
        found[stage] = {w["name"]: w["axes"] for w in inspect_plan(plan)["programs"][0]["weights"]}
    sums = [name for name in found[0] if found[1][name] != found[2][name]]
    assert found[1].keys() == found[2].keys() and len(sums) == sum(name.endswith(".adamw.m") for name in found[0])
    for name in sums:
        assert found[1][name] == found[0][name]  # each rank's part of the sum, as large as the weight
        moment = next(other for other in found[2] if other.endswith(".adamw.m") and name.startswith(other.removesuffix(".adamw.m") + "."))
        assert found[2][name] == found[3][name] == found[2][moment]


@pytest.mark.parametrize("what", ["optimizer", "optimizer+params"])
def test_offload_changes_nothing_on_the_host(what, tmp_path):
    """All states are in the host's memory anyway: the same plan, and a line that says so."""
    options = ("--batch=2", "--seq=24", "--task=train", "--mesh=dp=2,ep=2", "--zero=3")
    for name, more in (("plain", ()), ("offload", (f"--offload={what}",))):
        made = run_tool("moe-opt", GOLDEN / "olmoe", *options, *more, "-o", tmp_path / name)
        assert made.code == 0 and ("offload        nothing to do" in made.err) == bool(more), made
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "offload").read_bytes()


def test_offload_is_for_training(tmp_path):
    refused = run_tool("moe-opt", GOLDEN / "olmoe", "--offload=optimizer", "-o", tmp_path / "p.moeplan")
    assert refused.code == 1 and refused.error_ids == ["MOE-0102"]
    refused = run_tool("moe-opt", GOLDEN / "olmoe", "--task=train", "--offload=all", "-o", tmp_path / "p.moeplan")
    assert refused.code == 1 and "optimizer+params" in refused.err
