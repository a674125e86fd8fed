"""Shows that models of sizes and settings that no golden model has give the logits that transformers itself gives, on one rank and on meshes.

MOIRA_CASES says how many models a class (default 3).
"""

import os

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402  (needs both)
from common import relative_error
from moira import checkpoint, compile_plan, run_plan

CASES = int(os.environ.get("MOIRA_CASES", "3"))
PAIRS = [(kind, number) for kind in tiny_models.CLASSES for number in range(CASES)]


@pytest.mark.parametrize("kind, number", PAIRS, ids=[f"{kind}-{number}" for kind, number in PAIRS])
def test_logits_are_those_of_transformers(kind, number, tmp_path):
    case = tiny_models.draw(kind, number, tmp_path)
    print(f"{kind} {number}: {case.fields}")
    checkpoint.write(tmp_path / "inputs.safetensors", {"input_ids": case.input_ids})
    batch, seq = case.input_ids.shape
    for mesh in case.meshes:
        plan, output = tmp_path / "p.moeplan", tmp_path / "o.safetensors"
        compile_plan(tmp_path, plan, f"--batch={batch}", f"--seq={seq}", *([f"--mesh={mesh}"] if mesh else []))
        run_plan(plan, tmp_path, tmp_path / "inputs.safetensors", output)
        assert relative_error(checkpoint.read(output)["logits"], case.logits) <= 1e-5, f"on mesh {mesh or 'one'}"
