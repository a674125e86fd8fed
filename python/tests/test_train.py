"""Shows that training is training: the golden trajectories of torch's AdamW, the same losses on meshes and from the reference program, and runs that
can be ended at any time and taken up again to the bit.
"""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, golden_options, has_experts
from moira import checkpoint, compile_plan, run_tool
from moira.tools import program

ADAMW = ("--task=train", "--optimizer=adamw", "--lr=1e-3", "--betas=0.9,0.999", "--eps=1e-8", "--weight-decay=0.01")
MESHES = ("ep=2", "dp=2", "dp=2,ep=2", "tp=2", "ep=2,tp=2")


def tolerance(kind):
    return 1e-3 if kind == "mixtral" else 1e-4  # its routing flips


def compiled(kind, folder, *options):
    plan = folder / "train.moeplan"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), *ADAMW, *options)
    return plan


def arguments(kind, plan, metrics, *options):
    files = (f"--weights={GOLDEN / kind}", f"--inputs={GOLDEN / kind}/io.safetensors", f"--metrics={metrics}")
    return (plan, *files, *options)


def train(kind, plan, metrics, *options):
    """-> the metrics of every step"""
    finished = run_tool("moe-run", *arguments(kind, plan, metrics, *options))
    assert finished.code == 0, finished
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def losses(steps):
    return np.array([step["loss"] for step in steps])


def error(got, want):
    return float(np.max(np.abs(got - want) / np.abs(want)))


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_golden_trajectory(kind, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["adamw_losses"]
    steps = train(kind, compiled(kind, tmp_path), tmp_path / "m.jsonl", "--steps=10")
    assert [step["step"] for step in steps] == list(range(1, 11))
    assert error(losses(steps), want) <= tolerance(kind)
    norms = json.loads((GOLDEN / kind / "grad_norms.json").read_text())
    total = np.sqrt(sum(norm**2 for norm, _ in norms.values()))
    assert abs(steps[0]["grad_norm"] - total) <= 1e-5 * total
    assert all(abs(step["lr"] - 1e-3) < 1e-9 and step["tokens_per_s"] > 0 for step in steps)
    assert all(step["dropped_fraction"] == 0 for step in steps)
    assert all(step["expert_load_max_over_mean"] > 1 if has_experts(kind) else step["expert_load_max_over_mean"] == 1 for step in steps)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", ["olmoe", "mixtral"])
def test_meshes_follow_the_golden_trajectory(kind, mesh, tmp_path):
    want = checkpoint.read(GOLDEN / kind / "io.safetensors")["adamw_losses"]
    # With a bound of one row every first step must be repeated: an update that came too early would show.
    plan = compiled(kind, tmp_path, f"--mesh={mesh}", "--ragged-bound=1")
    steps = train(kind, plan, tmp_path / "m.jsonl", "--steps=10")
    assert error(losses(steps), want) <= tolerance(kind)


def test_reference_program_trains(tmp_path):
    want = checkpoint.read(GOLDEN / "olmoe" / "io.safetensors")["adamw_losses"]
    plan = compiled("olmoe", tmp_path, "--mesh=ep=2")
    for option in ("--reference", "--reference=f64"):
        assert error(losses(train("olmoe", plan, tmp_path / "m.jsonl", "--steps=10", option)), want) <= 1e-4


def test_clipping_bounds_the_norm(tmp_path):
    plain = train("olmoe", compiled("olmoe", tmp_path), tmp_path / "m.jsonl", "--steps=2")
    most = plain[0]["grad_norm"] / 4
    # SGD's first step is -lr times the clipped gradient: the weights move by lr * most.
    plan = tmp_path / "sgd.moeplan"
    options = ("--task=train", "--optimizer=sgd", "--lr=0.5", "--weight-decay=0", f"--clip-norm={most}")
    compile_plan(GOLDEN / "olmoe", plan, *golden_options("olmoe"), *options)
    steps = train("olmoe", plan, tmp_path / "s.jsonl", "--steps=1", f"--checkpoint={tmp_path}/run")
    assert abs(steps[0]["grad_norm"] - plain[0]["grad_norm"]) <= 1e-5 * plain[0]["grad_norm"]
    before, moved = checkpoint.read(GOLDEN / "olmoe" / "model.safetensors"), 0.0
    after = checkpoint.read(tmp_path / "run" / "step-1" / "rank-00000.safetensors")
    for name in ("model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"):
        assert after[name].shape == before[name].shape and np.any(after[name] != before[name])
    # A state's shape may have more dimensions than the tensor in the model's file.
    moved = np.sqrt(sum(np.sum((after[n].astype(np.float64).reshape(before[n].shape) - before[n]) ** 2) for n in before if n in after))
    assert moved <= 0.5 * most * (1 + 1e-4)


def test_metrics_may_go_through_a_pipe(tmp_path):
    """What is no file has no older lines to read or to cut off."""
    plan = compiled("olmoe", tmp_path)
    finished = run_tool("moe-run", *arguments("olmoe", plan, "/dev/stdout", "--steps=3"), timeout=30)
    assert finished.code == 0, finished
    assert [json.loads(line)["step"] for line in finished.out.splitlines()] == [1, 2, 3]
    finished = run_tool("moe-run", *arguments("olmoe", plan, "/dev/full", "--steps=3"), timeout=30)
    assert finished.code == 0 and "the metrics of some steps are lost; training goes on" in finished.err, finished


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="no /sys here")
def test_metrics_that_cannot_be_made_say_why(tmp_path):
    plan = compiled("olmoe", tmp_path)
    refused = run_tool("moe-run", *arguments("olmoe", plan, "/sys/m.jsonl", "--steps=1"))
    assert refused.code == 5 and refused.error_ids == ["MOE-0107"], refused
    assert "Permission denied" in refused.err or "Read-only" in refused.err or "not permitted" in refused.err, refused


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    plan = compiled("olmoe", tmp_path, "--mesh=dp=2,ep=2")
    whole = train("olmoe", plan, tmp_path / "whole.jsonl", "--steps=6", f"--checkpoint={tmp_path}/whole", "--save-every=2")
    train("olmoe", plan, tmp_path / "parts.jsonl", "--steps=4", f"--checkpoint={tmp_path}/parts", "--save-every=2")
    parts = train("olmoe", plan, tmp_path / "parts.jsonl", "--steps=6", f"--checkpoint={tmp_path}/parts", "--save-every=2", "--resume")
    assert [(s["step"], s["loss"], s["grad_norm"]) for s in parts] == [(s["step"], s["loss"], s["grad_norm"]) for s in whole]
    files = sorted(p.name for p in (tmp_path / "whole" / "step-6").iterdir())
    # What ranks hold alike is written once: those of dp=1 have nothing of their own.
    assert [f for f in files if f.startswith("rank-")] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    for name in files:
        if name.startswith("rank-"):
            assert (tmp_path / "whole" / "step-6" / name).read_bytes() == (tmp_path / "parts" / "step-6" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["LATEST", "step-4", "step-6"]


def test_a_run_that_has_nothing_to_begin_with(tmp_path):
    plan = compiled("olmoe", tmp_path)
    inputs = f"--inputs={GOLDEN / 'olmoe'}/io.safetensors"
    finished = run_tool("moe-run", plan, inputs, "--steps=2", f"--checkpoint={tmp_path}/run", "--resume")
    assert finished.error_ids == ["MOE-0102"] and finished.code == 1, finished
    assert "/run has no checkpoint" in finished.err and "--weights=DIR" in finished.err and "--init=SEED" in finished.err


def test_another_mesh_goes_on(tmp_path):
    want = checkpoint.read(GOLDEN / "olmoe" / "io.safetensors")["adamw_losses"]
    meshes = ("dp=2", "ep=2,tp=2", "", "dp=2,ep=2")
    for i, mesh in enumerate(meshes):
        plan = compiled("olmoe", tmp_path, *([f"--mesh={mesh}"] if mesh else []))
        options = (f"--steps={2 * i + 2}", f"--checkpoint={tmp_path}/run", *(["--resume"] if i else []))
        steps = train("olmoe", plan, tmp_path / "m.jsonl", *options)
    assert error(losses(steps), want[:8]) <= 1e-4


def test_a_directory_with_checkpoints_is_not_overwritten(tmp_path):
    plan = compiled("olmoe", tmp_path)
    train("olmoe", plan, tmp_path / "m.jsonl", "--steps=1", f"--checkpoint={tmp_path}/run")
    again = run_tool("moe-run", *arguments("olmoe", plan, tmp_path / "m.jsonl", "--steps=2", f"--checkpoint={tmp_path}/run"))
    assert again.code == 1 and again.error_ids == ["MOE-0102"] and "--resume" in again.err


def test_the_directory_may_be_a_link(tmp_path):
    """As to a larger disk: what lies there is found, gone on from, and not overwritten."""
    plan = compiled("olmoe", tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    run = f"--checkpoint={tmp_path}/run"
    train("olmoe", plan, tmp_path / "m.jsonl", "--steps=2", "--save-every=1", run)
    again = run_tool("moe-run", *arguments("olmoe", plan, tmp_path / "m.jsonl", "--steps=3", run))
    assert again.code == 1 and "run holds step-2 already" in again.err, again
    resumed = run_tool("moe-run", *arguments("olmoe", plan, tmp_path / "m.jsonl", "--steps=3", run, "--resume"))
    assert resumed.code == 0 and f"resumed from {tmp_path}/run/step-2" in resumed.err, resumed
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["LATEST", "step-2", "step-3"]
    verified = run_tool("moe-ckpt", "verify", tmp_path / "run")
    assert verified.code == 0 and "run/step-3: training checkpoint of step 3" in verified.out, verified


def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    plan = compiled("olmoe", tmp_path)
    (tmp_path / "run").symlink_to("run")
    refused = run_tool("moe-run", *arguments("olmoe", plan, tmp_path / "m.jsonl", "--steps=1", f"--checkpoint={tmp_path}/run", "--resume"))
    assert refused.code == 2 and refused.error_ids == ["MOE-0106"] and "run cannot be read" in refused.err, refused


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(tmp_path):
    plan = compiled("olmoe", tmp_path)
    run = ("--steps=1", f"--checkpoint={tmp_path}/run")
    train("olmoe", plan, tmp_path / "m.jsonl", *run)
    shutil.rmtree(tmp_path / "run" / "step-1")
    refused = run_tool("moe-run", *arguments("olmoe", plan, tmp_path / "m.jsonl", *run, "--resume"))
    assert refused.code == 2 and refused.error_ids == ["MOE-0307"] and "remove LATEST" in refused.err, refused
    assert (tmp_path / "m.jsonl").read_text().count("\n") == 1
    (tmp_path / "run" / "LATEST").unlink()
    train("olmoe", plan, tmp_path / "m.jsonl", *run, "--resume")


def test_damaged_checkpoint_is_refused(tmp_path):
    plan = compiled("olmoe", tmp_path)
    run = ("--steps=1", f"--checkpoint={tmp_path}/run")
    train("olmoe", plan, tmp_path / "m.jsonl", *run)
    file = tmp_path / "run" / "step-1" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 16
    file.write_bytes(data)
    refused = run_tool("moe-run", *arguments("olmoe", plan, tmp_path / "m.jsonl", "--steps=2", run[1], "--resume"))
    assert refused.code == 2 and refused.error_ids == ["MOE-0307"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_saves_and_leaves(number, tmp_path):
    plan = compiled("olmoe", tmp_path, "--mesh=ep=2")
    metrics = tmp_path / "m.jsonl"
    command = [program("moe-run"), *map(str, arguments("olmoe", plan, metrics, "--steps=1000000", f"--checkpoint={tmp_path}/run"))]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 3):
        time.sleep(0.05)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 128 + number, stderr
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (tmp_path / "run" / "LATEST").read_text().startswith(f"step-{last} ")
    resumed = train("olmoe", plan, metrics, f"--steps={last + 1}", f"--checkpoint={tmp_path}/run", "--resume")
    assert [step["step"] for step in resumed] == list(range(1, last + 2))


def test_schedule(tmp_path):
    plan = compiled("olmoe", tmp_path)
    steps = train("olmoe", plan, tmp_path / "m.jsonl", "--steps=6", "--lr=1e-2", "--schedule=linear,warmup=2,steps=6")
    assert np.allclose([s["lr"] for s in steps], [5e-3, 1e-2, 7.5e-3, 5e-3, 2.5e-3, 0], atol=1e-9)


def write_dataset(prefix, tokens, lengths):
    """Megatron's indexed dataset of i32 tokens, each sequence a document."""
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * 4
    head = b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + bytes([4]) + np.array([len(lengths), len(lengths) + 1], "<u8").tobytes()
    tables = (np.array(lengths, "<i4"), offsets.astype("<i8"), np.arange(len(lengths) + 1, dtype="<i8"))
    prefix.with_suffix(".idx").write_bytes(head + b"".join(table.tobytes() for table in tables))
    prefix.with_suffix(".bin").write_bytes(np.array(tokens, "<i4").tobytes())


def test_from_random_weights_and_data(tmp_path):
    """A repeated pattern is learnt; the losses are those of every mesh, and of a run that was taken up again in the middle of the data."""
    rows = np.tile(np.arange(10, 34), 60)
    write_dataset(tmp_path / "a", rows[:720], [100, 620])
    write_dataset(tmp_path / "b", rows[5 : 5 + 240], [240])
    data = ("--init=5", f"--data={tmp_path}/a,{tmp_path}/b", "--data-temperature=2", "--lr=3e-3")

    def run(name, plan, *options):
        finished = run_tool("moe-run", plan, *data, *options, f"--metrics={tmp_path}/{name}.jsonl", f"--checkpoint={tmp_path}/{name}")
        assert finished.code == 0, finished
        return losses([json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()])

    plan = compiled("olmoe", tmp_path)
    one = run("one", plan, "--steps=20")
    assert one[-1] < 0.7 * one[0] and abs(one[0] - np.log(256)) < 0.3
    run("parts", plan, "--steps=11")
    assert (run("parts", plan, "--steps=20", "--resume") == one).all()
    for mesh in ("dp=2", "dp=2,ep=2"):
        assert error(run(mesh, compiled("olmoe", tmp_path, f"--mesh={mesh}"), "--steps=20"), one) <= 1e-3
