"""Shows that --optimizer=adafactor is transformers' Adafactor with the tensors of the checkpoint as its parameters: its updates of the gradients that
--task=grad gives, on one rank and where matrices, experts and the vocabulary are cut.
"""

import json

import numpy as np
import pytest

from common import GOLDEN, golden_options
from moira import checkpoint, compile_plan, run_plan, run_tool
from test_micro_batches import state

STEPS = 3


def reference(kind, folder, lr, **options):
    """-> the checkpoint's tensors after STEPS steps of transformers' Adafactor"""
    torch = pytest.importorskip("torch")
    from transformers.optimization import Adafactor

    config = json.loads((GOLDEN / kind / "config.json").read_text())
    weights = checkpoint.read(GOLDEN / kind / "model.safetensors")
    plan = folder / "grad.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), "--task=grad")
    parameters = {name: torch.nn.Parameter(torch.tensor(np.array(value, np.float32))) for name, value in weights.items()}
    optimizer = Adafactor(list(parameters.values()), lr=lr, relative_step=False, warmup_init=False, **options)
    losses = []
    for _ in range(STEPS):
        checkpoint.write_model(folder / "model", config, {name: value.detach().numpy() for name, value in parameters.items()})
        run_plan(plan, folder / "model", GOLDEN / kind / "io.safetensors", folder / "out.safetensors", "--reference=f64")
        outputs = checkpoint.read(folder / "out.safetensors")
        losses.append(float(outputs["loss"][0]))
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(np.array(outputs[f"grad.{name}"], np.float32))
        optimizer.step()
    return losses, {name: value.detach().numpy() for name, value in parameters.items()}


def train(kind, folder, lr, *options):
    """-> losses, and the checkpoint's tensors after STEPS steps as the plan has them"""
    plan = folder / "train.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), "--task=train", "--optimizer=adafactor", f"--lr={lr}", *options)
    run = (f"--weights={GOLDEN / kind}", f"--inputs={GOLDEN / kind}/io.safetensors", f"--steps={STEPS}", f"--metrics={folder}/m.jsonl")
    finished = run_tool("moe-run", plan, *run, f"--checkpoint={folder}/run")
    assert finished.code == 0, finished
    return [json.loads(line)["loss"] for line in (folder / "m.jsonl").read_text().splitlines()], state(folder / "run" / f"step-{STEPS}")


def stacked(name, value, tensors):
    """A state of experts: a tensor of the checkpoint for each, and for each of gate and up."""
    prefix = name.rsplit(".", 1)[0]
    parts = ("down_proj",) if value.ndim == 3 else ("gate_proj", "up_proj")
    return np.stack([np.stack([tensors[f"{prefix}.{e}.{part}.weight"] for part in parts]) for e in range(value.shape[0])])


@pytest.mark.parametrize("scaled,mesh", [("off", ""), ("on", ""), ("on", "dp=2,ep=2"), ("on", "ep=2,tp=2"), ("on", "dp=2,ep=2,tp=2")])
def test_adafactor_is_transformers(scaled, mesh, tmp_path):
    lr = 0.02 if scaled == "on" else 2e-3
    losses, want = reference("olmoe", tmp_path, lr, scale_parameter=scaled == "on", weight_decay=0.1)
    options = (f"--scale-parameter={scaled}", "--weight-decay=0.1", *([f"--mesh={mesh}", "--ragged-bound=1"] if mesh else []))
    got_losses, got = train("olmoe", tmp_path, lr, *options)
    assert np.allclose(got_losses, losses, rtol=1e-5)
    assert losses[-1] < losses[0]
    compared = 0
    for name, value in got.items():
        if "adafactor" in name:
            continue
        whole = want[name] if name in want else stacked(name, value, want)
        error = np.abs(value.reshape(whole.shape) - whole).max()
        assert error <= 2e-5 * np.abs(whole).max(), (name, error)
        compared += whole.size
    assert compared == sum(value.size for value in want.values())


def test_moments_are_small(tmp_path):
    """A matrix [R, C] keeps R + C + 1 numbers; on every mesh a rank keeps its part of them."""
    _, got = train("olmoe", tmp_path, 0.01, "--mesh=ep=2")
    kept = {name: value for name, value in got.items() if ".adafactor." in name}
    experts = {name.rsplit(".", 1)[1]: value.shape for name, value in kept.items() if "layers.0.mlp.experts.down_proj" in name}
    assert experts == {"r": (16, 64), "c": (16, 64), "m": (16,)}
    assert all(np.isfinite(value).all() and (value > 0).all() for value in kept.values())


def test_options_of_adafactor_are_its_own(tmp_path):
    refused = run_tool("moe-opt", GOLDEN / "olmoe", "--task=train", "--decay-rate=0.5", "-o", tmp_path / "x.moeplan")
    assert refused.code == 1 and "--optimizer=adafactor" in refused.err
