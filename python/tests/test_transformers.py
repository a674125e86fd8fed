"""Shows that models of sizes and settings that no golden model has give the logits that transformers itself gives, on one rank and on meshes.

MOIRA_CASES says how many models a class (default 3), MOIRA_FIRST_CASE with which number they begin.
"""

import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import tiny_models
from common import relative_error
from moira import checkpoint, compile_plan, run_plan, run_tool

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


def saturated(pick, fields):
    """Experts so small that they have no room for any second choice."""
    tiny_models.sinusoidal(pick, fields)
    fields.update(num_experts=4, encoder_sparse_step=1, decoder_sparse_step=1, expert_capacity=1, moe_eval_capacity_token_fraction=-1.0, moe_token_dropout=0.0,
                  dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0)  # fmt: skip


def torch_losses(directory, inputs, labels, steps):
    """Of AdamW as torch has it, in double precision."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").double().train()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.1)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            logits = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mesh", ("", "ep=2", "dp=2,tp=2"))
def test_nllb_trains_its_experts_though_no_second_choice_is_kept(mesh, tmp_path, monkeypatch):
    """transformers calls expert 0 for all that is dropped, with weights of zero: its gradient is zero, and AdamW updates it."""
    monkeypatch.setitem(tiny_models.DRAW, "nllb_moe", saturated)
    case = tiny_models.draw("nllb_moe", 1, tmp_path)
    labels = np.random.default_rng(0).integers(2, case.fields["vocab_size"], case.inputs["decoder_input_ids"].shape)
    want = torch_losses(tmp_path, case.inputs, labels, steps=5)
    checkpoint.write(tmp_path / "inputs.safetensors", {**case.inputs, "labels": labels})
    options = ("--task=train", "--lr=1e-2", "--eps=1e-3", "--weight-decay=0.1", *([f"--mesh={mesh}"] if mesh else []))
    compile_plan(tmp_path, tmp_path / "p.moeplan", *case.options(), *options)
    done = run_tool("moe-run", tmp_path / "p.moeplan", f"--weights={tmp_path}", f"--inputs={tmp_path}/inputs.safetensors", "--steps=5",
                    f"--metrics={tmp_path}/m.jsonl")  # fmt: skip
    assert done.code == 0, done
    got = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert got[0]["dropped_fraction"] > 0.5
    assert relative_error([step["loss"] for step in got], want) <= 1e-6
