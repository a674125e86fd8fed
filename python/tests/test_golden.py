"""Shows that the golden models give the golden logits: every class on its meshes, as threads and under mpirun.

Every pair: close to the golden logits, the same bits again, and the same bits with a ragged bound so small that the step must be repeated.
"""

import re

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, golden_options, golden_pairs, has_experts, ranks_of, relative_error
from moira import checkpoint, compile_plan, run_plan

PAIRS = golden_pairs()
# Under mpirun: every class and every kind of axis.
MPI_PAIRS = [
    ("mixtral", "ep=2"),
    ("mixtral", "dp=2,ep=2,tp=2"),
    ("qwen2_moe", "tp=2"),
    ("qwen2_moe", "dp=2,ep=2"),
    ("qwen3_moe", "ep=4"),
    ("qwen3_moe", "ep=2,tp=2"),
    ("olmoe", "dp=2,tp=2"),
    ("olmoe", "ep=2,tp=2"),
    ("switch_transformers", "ep=2,tp=2"),
]


def name(pair):
    return f"{pair[0]}-{pair[1] or 'one'}"


def compiled(kind, mesh, folder, *options):
    plan = folder / "model.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), *([f"--mesh={mesh}"] if mesh else []), *options)
    return plan


def logits_of(kind, plan, output, *options, **kwargs):
    """-> (bytes of the output file, logits, stderr)"""
    finished = run_plan(plan, GOLDEN / kind, GOLDEN / kind / "io.safetensors", output, *options, **kwargs)
    return output.read_bytes(), checkpoint.read(output)["logits"], finished.err


def retries(stderr):
    return int(re.search(r"\bretries (\d+)", stderr).group(1))


@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_logits_and_bits(pair, tmp_path):
    kind, mesh = pair
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["logits"]
    first, logits, _ = logits_of(kind, compiled(kind, mesh, tmp_path), tmp_path / "a.safetensors")
    assert relative_error(logits, want) <= 1e-5
    again, _, _ = logits_of(kind, tmp_path / "model.moeplan", tmp_path / "b.safetensors")
    assert first == again, "two runs of one plan differ"

    forced, _, stderr = logits_of(kind, compiled(kind, mesh, tmp_path, "--ragged-bound=1"), tmp_path / "c.safetensors")
    assert forced == first, "the ragged bound changes the result"
    if "ep=" in mesh:
        assert retries(stderr) >= 1, "a bound of one row must have forced a retry"


@pytest.mark.parametrize("pair", MPI_PAIRS, ids=name)
def test_processes_give_the_bits_of_threads(pair, tmp_path):
    kind, mesh = pair
    plan = compiled(kind, mesh, tmp_path, "--ragged-bound=1")
    threads, _, _ = logits_of(kind, plan, tmp_path / "threads.safetensors")
    processes, _, stderr = logits_of(kind, plan, tmp_path / "mpi.safetensors", mpi=ranks_of(mesh))
    assert processes == threads
    if "ep=" in mesh:
        assert retries(stderr) >= 1


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_reference_without_kernels(kind, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["logits"]
    plan = compiled(kind, "ep=2" if has_experts(kind) else "", tmp_path)
    for option in ("--reference", "--reference=f64"):
        _, logits, _ = logits_of(kind, plan, tmp_path / "r.safetensors", option)
        assert relative_error(logits, want) <= 1e-5


def test_check_compares_with_the_reference(tmp_path):
    plan = compiled("olmoe", "dp=2,tp=2", tmp_path)
    _, _, stderr = logits_of("olmoe", plan, tmp_path / "o.safetensors", "--check")
    assert "check" in stderr


def test_known_unused_tensors_do_not_stop_a_run(tmp_path):
    """Inverse frequencies, and a tied head that is stored all the same."""
    for kind, extra in (("mixtral", "model.rotary_emb.inv_freq"), ("m2m_100", "lm_head.weight")):
        config, tensors = checkpoint.read_model(GOLDEN / kind)
        tensors[extra] = tensors["model.shared.weight"] if kind == "m2m_100" else np.ones(8, np.float32)
        checkpoint.write_model(tmp_path / kind, config, tensors)
        compile_plan(tmp_path / kind, tmp_path / "p.moeplan", *golden_options(kind))
        golden = GOLDEN / kind / "io.safetensors"
        run_plan(tmp_path / "p.moeplan", tmp_path / kind, golden, tmp_path / "o.safetensors")
        assert relative_error(checkpoint.read(tmp_path / "o.safetensors")["logits"], checkpoint.read(golden)["logits"]) <= 1e-5
