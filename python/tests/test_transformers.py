"""Shows that models of sizes and settings that no golden model has give the logits that transformers itself gives, on one rank and on meshes.

MOIRA_CASES says how many models a class (default 3), MOIRA_FIRST_CASE with which number they begin.
"""

import os

import pytest

import tiny_models
from common import relative_error
from moira import checkpoint, compile_plan, run_plan

CASES, FIRST = int(os.environ.get("MOIRA_CASES", "3")), int(os.environ.get("MOIRA_FIRST_CASE", "0"))
PAIRS = [(kind, number) for kind in tiny_models.CLASSES for number in range(FIRST, FIRST + CASES)]


@pytest.mark.parametrize("kind, number", PAIRS, ids=[f"{kind}-{number}" for kind, number in PAIRS])
def test_logits_are_those_of_transformers(kind, number, tmp_path):
    case = tiny_models.draw(kind, number, tmp_path)
    print(f"{kind} {number}: {case.fields} inputs {[(n, v.shape) for n, v in case.inputs.items()]}")
    checkpoint.write(tmp_path / "inputs.safetensors", case.inputs)
    for mesh in case.meshes:
        plan, output = tmp_path / "p.moeplan", tmp_path / "o.safetensors"
        compile_plan(tmp_path, plan, *case.options(), *([f"--mesh={mesh}"] if mesh else []))
        run_plan(plan, tmp_path, tmp_path / "inputs.safetensors", output)
        assert relative_error(checkpoint.read(output)["logits"][case.seen], case.logits[case.seen]) <= 1e-5, f"on mesh {mesh or 'one'}"


def without_shared_experts(pick, fields):
    tiny_models.deepseek_v3(pick, fields)
    fields.update(n_shared_experts=0)


def test_tensors_without_elements_are_passed_over(tmp_path, monkeypatch):
    """transformers writes those of no shared experts, [hidden, 0]; the model is the same without them."""
    monkeypatch.setitem(tiny_models.DRAW, "deepseek_v3", without_shared_experts)
    case = tiny_models.draw("deepseek_v3", 0, tmp_path)
    assert any(value.size == 0 for value in checkpoint.read_model(tmp_path)[1].values())
    checkpoint.write(tmp_path / "inputs.safetensors", case.inputs)
    plan, output = tmp_path / "p.moeplan", tmp_path / "o.safetensors"
    compile_plan(tmp_path, plan, *case.options(), "--mesh=ep=2,tp=2")
    run_plan(plan, tmp_path, tmp_path / "inputs.safetensors", output)
    assert relative_error(checkpoint.read(output)["logits"][case.seen], case.logits[case.seen]) <= 1e-5
