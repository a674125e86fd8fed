"""Shows that the host computes in bf16 as closely as its rounding allows: with f32's choice of experts within 2e-2 of the golden logits.

What is rounded: the operands of products. The residual stream, gates, norms and sums are f32 (docs/architecture.md).
"""

import re

import numpy as np
import pytest

from common import CLASSES, GOLDEN, GOLDEN_CLASSES, golden_options, has_experts, relative_error
from moira import checkpoint, compile_plan, run_plan, run_tool
from test_memory import allocated, planned

TOLERANCE = 2e-2
# Ranks that add partial sums round others: a mesh from one rank, both with the same choices.
MESH_TOLERANCE = 1e-2
SAME_CHOICES = 0.9


def run(plan, model, output, *options, **kwargs):
    """-> (bytes of the output, logits, stderr)"""
    finished = run_plan(plan, model, GOLDEN / model.name / "io.safetensors", output, *options, **kwargs)
    return output.read_bytes(), checkpoint.read(output)["logits"], finished.err


def compiled(kind, folder, *options):
    plan = folder / "bf16.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), "--dtype=bf16", *options)
    return plan


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """{class: the option that names the experts which f32 chooses}; nothing for dense classes"""
    folder = tmp_path_factory.mktemp("routes")
    options = {kind: () for kind in GOLDEN_CLASSES}
    for kind in filter(has_experts, GOLDEN_CLASSES):
        compile_plan(GOLDEN / kind, folder / "f32.moeplan", *golden_options(kind))
        file = folder / f"{kind}.safetensors"
        run(folder / "f32.moeplan", GOLDEN / kind, folder / "o.safetensors", f"--dump-routing={file}")
        options[kind] = (f"--route-from={file}",)
    return options


@pytest.mark.parametrize("kind", [kind for kind in GOLDEN_CLASSES if kind != "phimoe"])
def test_logits_with_the_choices_of_f32(kind, choices, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["logits"]
    plan = compiled(kind, tmp_path)
    first, logits, stderr = run(plan, GOLDEN / kind, tmp_path / "a.safetensors", *choices[kind])
    error = relative_error(logits, want)
    assert error <= TOLERANCE
    assert error > 1e-4, "nothing has been rounded"
    assert allocated(stderr) == {0: planned(plan, None)}
    again, _, _ = run(plan, GOLDEN / kind, tmp_path / "b.safetensors", *choices[kind])
    assert first == again, "two runs of one plan differ"


@pytest.mark.parametrize("mesh", ["", "ep=2", "tp=2", "dp=2"])
def test_logits_before_weights_jump(mesh, choices, tmp_path):
    """SparseMixer's weights jump where another expert's logit comes near enough to share the softmax, so the same experts do not mean the same
    weights. Up to the first such token of a sequence they do."""
    want = checkpoint.read(GOLDEN / "phimoe" / "io.safetensors")["logits"]
    plan, used = compiled("phimoe", tmp_path, *([f"--mesh={mesh}"] if mesh else [])), tmp_path / "used.safetensors"
    _, logits, _ = run(plan, GOLDEN / "phimoe", tmp_path / "o.safetensors", *choices["phimoe"], f"--dump-routing={used}")
    ours, theirs = checkpoint.read(used), checkpoint.read(choices["phimoe"][0].split("=", 1)[1])
    apart = np.array([np.abs(ours[name] - weights).max(axis=-1) for name, weights in theirs.items() if name.endswith(".weights")])
    assert np.all((apart < 0.01) | (apart > 0.25)), "a jump is no rounding"
    held = np.cumsum(np.any(apart > 0.25, axis=0), axis=1) == 0
    assert held.mean() >= 0.25
    assert relative_error(np.where(held[..., None], logits, want), want) <= TOLERANCE


@pytest.mark.parametrize("mesh", ["ep=2", "tp=2", "dp=2,ep=2"])
@pytest.mark.parametrize("kind", CLASSES)
def test_meshes_with_the_choices_of_f32(kind, mesh, choices, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["logits"]
    _, one, _ = run(compiled(kind, tmp_path), GOLDEN / kind, tmp_path / "one.safetensors", *choices[kind])
    plan = compiled(kind, tmp_path, f"--mesh={mesh}", "--ragged-bound=1")
    _, many, stderr = run(plan, GOLDEN / kind, tmp_path / "many.safetensors", *choices[kind])
    assert relative_error(many, want) <= TOLERANCE
    assert relative_error(many, one) <= MESH_TOLERANCE
    bound = re.search(r"\bbound (\d+)", stderr)
    assert set(allocated(stderr).values()) == {planned(plan, int(bound.group(1)) if bound else None)}


@pytest.mark.parametrize("kind", CLASSES)
def test_free_choices_are_mostly_those_of_f32(kind, choices, tmp_path):
    own = tmp_path / "own.safetensors"
    run(compiled(kind, tmp_path), GOLDEN / kind, tmp_path / "o.safetensors", f"--dump-routing={own}")
    ours, theirs = checkpoint.read(own), checkpoint.read(choices[kind][0].split("=", 1)[1])
    same = [
        np.all(np.sort(ours[name], axis=-1) == np.sort(ids, axis=-1), axis=-1).ravel() for name, ids in theirs.items() if name.endswith(".ids")
    ]
    assert np.concatenate(same).mean() >= SAME_CHOICES


def test_processes_give_the_bits_of_threads(tmp_path):
    # Under tp, partial sums of ranks are added.
    plan = compiled("qwen2_moe", tmp_path, "--mesh=ep=2,tp=2")
    threads, _, _ = run(plan, GOLDEN / "qwen2_moe", tmp_path / "threads.safetensors")
    processes, _, _ = run(plan, GOLDEN / "qwen2_moe", tmp_path / "mpi.safetensors", mpi=4)
    assert processes == threads


def test_reference_of_a_bf16_plan_is_exact(tmp_path):
    want = checkpoint.read(GOLDEN / "qwen2_moe" / "io.safetensors")["logits"]
    _, logits, _ = run(compiled("qwen2_moe", tmp_path), GOLDEN / "qwen2_moe", tmp_path / "r.safetensors", "--reference")
    assert relative_error(logits, want) <= 1e-5


def test_check_allows_for_rounding(choices, tmp_path):
    options = ("--check", *choices["mixtral"])
    _, _, stderr = run(compiled("mixtral", tmp_path), GOLDEN / "mixtral", tmp_path / "o.safetensors", *options)
    assert "allowed 0.02" in stderr
    model = GOLDEN / "mixtral"
    files = (f"--weights={model}", f"--inputs={model / 'io.safetensors'}")
    strict = run_tool("moe-run", tmp_path / "bf16.moeplan", *files, *options, "--check-tolerance=1e-5")
    assert (strict.code, strict.error_ids) == (4, ["MOE-0507"])


@pytest.mark.parametrize("stored", ["BF16", "F16"])
def test_checkpoints_of_other_types(stored, tmp_path):
    """The same numbers stored in 16 or in 32 bits give the same bits."""
    config, tensors = checkpoint.read_model(GOLDEN / "olmoe")
    narrow = {name: checkpoint.stored(value, stored) for name, value in tensors.items()}
    checkpoint.write_model(tmp_path / "narrow" / "olmoe", config, narrow)
    _, rounded = checkpoint.read_model(tmp_path / "narrow" / "olmoe")
    wide = {name: value.astype(np.float32) for name, value in rounded.items()}
    checkpoint.write_model(tmp_path / "wide" / "olmoe", config, wide)
    plan = compiled("olmoe", tmp_path)
    first, _, _ = run(plan, tmp_path / "narrow" / "olmoe", tmp_path / "a.safetensors")
    second, _, _ = run(plan, tmp_path / "wide" / "olmoe", tmp_path / "b.safetensors")
    assert first == second
