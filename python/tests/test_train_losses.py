"""Shows what --task=train adds to the cross-entropy and to its gradient steps: smoothed labels, loads evened out by biases, a schedule in the plan."""

import json

import numpy as np
import pytest

from common import GOLDEN, golden_options
from moira import checkpoint, compile_plan, run_tool
from test_micro_batches import state


def train(kind, folder, compile_options, *options):
    """-> the metrics of every step"""
    plan = folder / "train.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), "--task=train", *compile_options)
    run = (f"--weights={GOLDEN / kind}", f"--inputs={GOLDEN / kind}/io.safetensors", f"--metrics={folder}/m.jsonl")
    finished = run_tool("moe-run", plan, *run, *options)
    assert finished.code == 0, finished
    return [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ("olmoe", "mt5"))
def test_label_smoothing_is_torch_s(kind, tmp_path):
    torch = pytest.importorskip("torch")
    given = checkpoint.read(GOLDEN / kind / "io.safetensors")
    logits = torch.tensor(given["logits"].astype(np.float64))
    if kind == "mt5":
        labels = torch.tensor(given["labels"].astype(np.int64))
    else:
        logits, labels = logits[:, :-1], torch.tensor(given["input_ids"].astype(np.int64))[:, 1:]
    want = float(torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), label_smoothing=0.1))
    for options in ((), ("--mesh=tp=2",), ("--micro-batches=2",)):
        got = train(kind, tmp_path, ("--label-smoothing=0.1", *options), "--steps=1")[0]["loss"]
        assert abs(got - want) <= 1e-5 * want, options


RATE = 0.25


def biases(kind, folder, *options):
    """-> the selection biases after a step"""
    train(kind, folder, ("--lr=1e-3", *options), "--steps=1", f"--checkpoint={folder}/run")
    return {name: value for name, value in state(folder / "run" / "step-1").items() if name.endswith("e_score_correction_bias")}


@pytest.mark.parametrize("options", ((), ("--mesh=dp=2,ep=2",), ("--mesh=ep=2,tp=2",), ("--micro-batches=2",)))
def test_biases_move_against_the_load(options, tmp_path):
    """Held against the choices of a forward pass, which are those of the step."""
    kind = "deepseek_v3"
    plan = tmp_path / "forward.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind))
    files = (f"--weights={GOLDEN / kind}", f"--inputs={GOLDEN / kind}/io.safetensors", f"--outputs={tmp_path}/o.safetensors")
    assert run_tool("moe-run", plan, *files, f"--dump-routing={tmp_path}/routing.safetensors").code == 0
    routing = checkpoint.read(tmp_path / "routing.safetensors")
    before = checkpoint.read(GOLDEN / kind / "model.safetensors")
    got = biases(kind, tmp_path, f"--bias-update-rate={RATE}", *options)
    assert got
    for name, value in got.items():
        layer = name.split("layers.")[1].split(".")[0]
        load = np.bincount(routing[f"layers.{layer}.ids"].reshape(-1), minlength=value.size)
        assert load.min() < load.mean() < load.max()
        assert np.allclose(value, before[name] + RATE * np.sign(load.mean() - load), atol=1e-6), name


def test_biases_stay_without_a_rate(tmp_path):
    """No loss depends on them, so no optimizer touches them, by a decay of weights neither."""
    before = checkpoint.read(GOLDEN / "deepseek_v3" / "model.safetensors")
    got = biases("deepseek_v3", tmp_path, "--weight-decay=0.5")
    assert got and all((value == before[name]).all() for name, value in got.items())


def test_a_rate_needs_biases(tmp_path):
    refused = run_tool("moe-opt", GOLDEN / "olmoe", "--task=train", "--bias-update-rate=0.1", "-o", tmp_path / "x.moeplan")
    assert refused.code != 0 and "chooses with a bias" in refused.err, refused


def test_a_plan_has_a_schedule_of_its_own(tmp_path):
    options = ("--lr=1e-2", "--schedule=linear,warmup=2,steps=6")
    steps = train("olmoe", tmp_path, options, "--steps=6")
    assert np.allclose([s["lr"] for s in steps], [5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3, 0], atol=1e-9)
    steps = train("olmoe", tmp_path, options, "--steps=2", "--schedule=constant")
    assert [s["lr"] for s in steps] == [pytest.approx(1e-2)] * 2
    refused = run_tool("moe-opt", GOLDEN / "olmoe", "--task=train", "--schedule=zigzag", "-o", tmp_path / "x.moeplan")
    assert refused.code == 1 and "zigzag" in refused.err
