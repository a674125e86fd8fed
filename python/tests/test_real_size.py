"""Shows that examples/olmoe-1b-7b/make.py writes what a checkpoint of that class has, and that its true shape compiles from headers in under
two seconds. Running it at that size is scripts/gpu-conformance.py's."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from common import GOLDEN, ROOT, relative_error
from moira import checkpoint, compile_plan, inspect_plan, run_plan

SECONDS = 2
MAKE = ROOT / "examples" / "olmoe-1b-7b" / "make.py"


def make(folder, *options):
    subprocess.run([sys.executable, MAKE, folder, *options], check=True)
    return folder


@pytest.mark.parametrize("kind", ["olmoe", "qwen3_moe"])
def test_a_tiny_one_is_complete_random_and_runs(kind, tmp_path):
    golden = GOLDEN / kind
    # These models have half a million bytes and more.
    model = make(tmp_path / "model", f"--config={golden / 'config.json'}", "--inputs=2x24", "--shard-bytes=200000")
    files = sorted(model.glob("model-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 400000 for file in files)
    _, ours = checkpoint.read_model(model)
    _, theirs = checkpoint.read_model(golden)
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    deviation = json.loads((golden / "config.json").read_text())["initializer_range"]
    matrices = [value for value in ours.values() if value.ndim > 1]
    for value in matrices:  # within six deviations of what is expected of so many draws
        assert abs(value.mean()) < 6 * deviation / np.sqrt(value.size)
        assert abs(value.std() / deviation - 1) < 6 / np.sqrt(2 * value.size)
        assert 2.3 * deviation < np.abs(value).max() < 4.6 * deviation
    assert len({value.tobytes() for value in matrices}) == len(matrices)
    assert all(np.all(value == 1) for value in ours.values() if value.ndim == 1)

    plan, inputs = tmp_path / "p.moeplan", model / "inputs-2x24.safetensors"
    compile_plan(model, plan, "--batch=2", "--seq=24", "--mesh=ep=2")
    run_plan(plan, model, inputs, tmp_path / "o.safetensors", "--check")
    logits = checkpoint.read(tmp_path / "o.safetensors")["logits"]
    other = make(tmp_path / "other", f"--config={golden / 'config.json'}", "--seed=2")
    run_plan(plan, other, inputs, tmp_path / "o2.safetensors")
    assert relative_error(checkpoint.read(tmp_path / "o2.safetensors")["logits"], logits) > 0.1, "the seed changes nothing"


def test_the_true_shape_compiles_from_headers(tmp_path):
    model = make(tmp_path / "model", "--headers-only")
    assert sum(file.stat().st_blocks for file in model.glob("*.safetensors")) * 512 < 2**24, "space was taken"
    for name, options in (("gpu", ["--batch=4", "--seq=2048", "--target=sm_90"]), ("host", ["--batch=1", "--seq=128"])):
        plan, seconds = tmp_path / f"{name}.moeplan", []
        for _ in range(3):  # other tests run beside this one
            start = time.monotonic()
            compile_plan(model, plan, *options, "--dtype=bf16")
            seconds.append(time.monotonic() - start)
        print(f"{name}: {min(seconds):.2f} s")
        assert min(seconds) < SECONDS
        summary = inspect_plan(plan)
        # Published: 6.9 billion parameters, 1.3 billion of them active. Counted by hand from the config.
        assert (summary["parameters"], summary["active_parameters"]) == (6_919_161_856, 1_282_017_280)
