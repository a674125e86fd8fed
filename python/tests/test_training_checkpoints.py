"""Shows that a training checkpoint means the same wherever it goes: all of its numbers are the same, to the bit, after any mesh or number of files has
taken them over; a run goes on from the new checkpoint as from the old one; and a model directory made of it has its weights, which transformers loads.
"""

import json
import re
import shutil

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, golden_options, has_experts
from moira import checkpoint, compile_plan, run_tool
from training_state import manifest, state

# Meshes, some with states that are split over replicas (ZeRO), of which the third stage splits weights too.
MESHES = ("", "dp=2 zero=1", "ep=2", "tp=2", "ep=4 zero=2", "dp=2,ep=2 zero=3", "ep=2,tp=2", "dp=2,ep=2,tp=2 zero=3")
STILL = ("--optimizer=sgd", "--lr=0", "--weight-decay=0")  # steps that change no weight


def files(kind):
    return (f"--weights={GOLDEN / kind}", f"--inputs={GOLDEN / kind / 'io.safetensors'}")


def compiled(kind, path, *options, mesh=""):
    """`mesh` as in MESHES"""
    axes, _, zero = mesh.partition(" ")
    more = [*([f"--mesh={axes}"] if axes else []), *([f"--{zero}"] if zero else [])]
    compile_plan(GOLDEN / kind, path, "--task=train", *golden_options(kind), *options, *more)
    return path


def train(kind, plan, run, steps, *options):
    """-> the losses of all steps of the run"""
    metrics = run.with_suffix(".jsonl")
    done = run_tool("moe-run", plan, *files(kind), f"--checkpoint={run}", f"--steps={steps}", f"--metrics={metrics}", *options)
    assert done.code == 0, done
    return [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]


def done(*arguments):
    finished = run_tool("moe-ckpt", *arguments)
    assert finished.code == 0, finished
    return finished


def same(a, b):
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return {mesh: compiled("olmoe", folder / f"{i}.moeplan", mesh=mesh) for i, mesh in enumerate(MESHES)}


@pytest.fixture(scope="module")
def runs(plans, tmp_path_factory):
    """Two steps on every mesh."""
    folder = tmp_path_factory.mktemp("runs")
    for i, mesh in enumerate(MESHES):
        train("olmoe", plans[mesh], folder / str(i), 2)
    return {mesh: folder / str(i) for i, mesh in enumerate(MESHES)}


@pytest.mark.parametrize("saved", MESHES)
def test_every_mesh_takes_over_what_any_other_saved(saved, plans, runs, tmp_path):
    """Eight by eight: parameters and what AdamW keeps of them, to the bit; the files are those that the mesh itself would have written."""
    want = state(runs[saved] / "step-2")
    assert len(want) > 60 and sum(name.endswith(".adamw.v") for name in want) * 3 == len(want)
    for i, mesh in enumerate(MESHES):
        target = tmp_path / str(i)
        done("reshard", runs[saved], target, f"--plan={plans[mesh]}")
        assert same(state(target / "step-2"), want), f"{saved} -> {mesh}"
        layout = [manifest(run / "step-2") for run in (target, runs[mesh])]
        places = [[(t["name"], b["file"], b["offset"], b["start"], b["extent"]) for t in one["tensors"] for b in t["boxes"]] for one in layout]
        assert places[0] == places[1] and layout[0]["plan"] == layout[1]["plan"] and layout[0]["data"] == layout[1]["data"]
    back = tmp_path / "back"
    done("reshard", tmp_path / "7", back, f"--plan={plans[saved]}")
    for file in (runs[saved] / "step-2").iterdir():
        assert (back / "step-2" / file.name).read_bytes() == file.read_bytes()
    done("verify", target)


@pytest.mark.parametrize("saved, loaded", [("", MESHES[7]), (MESHES[4], "tp=2"), ("ep=2,tp=2", MESHES[1]), (MESHES[5], ""), (MESHES[7], MESHES[4])])
def test_a_run_goes_on_alike_from_either(saved, loaded, plans, runs, tmp_path):
    """From another mesh's checkpoint as from that one cut anew: the same next steps, to the bit."""
    done("reshard", runs[saved], tmp_path / "anew", f"--plan={plans[loaded]}")
    done("reshard", runs[saved], tmp_path / "copy", "--ranks=3")
    losses = [train("olmoe", plans[loaded], tmp_path / name, 5, "--resume") for name in ("anew", "copy")]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert same(state(tmp_path / "anew" / "step-5"), state(tmp_path / "copy" / "step-5"))


@pytest.mark.parametrize("ranks", [1, 3, 7, 64])
def test_any_number_of_files(ranks, runs, tmp_path):
    source = runs[MESHES[7]]
    done("reshard", source / "step-2", tmp_path / "run", f"--ranks={ranks}")
    assert same(state(tmp_path / "run" / "step-2"), state(source / "step-2"))
    names = [p.name for p in (tmp_path / "run" / "step-2").iterdir() if p.name.startswith("rank-")]
    assert len(names) == ranks
    said = done("verify", tmp_path / "run").out
    assert f"training checkpoint of step 2, {len(state(source / 'step-2'))} tensors in {ranks} file" in said


def test_what_cannot_be_done_is_refused_and_leaves_nothing(plans, runs, tmp_path):
    def refused(expected, *arguments):
        finished = run_tool("moe-ckpt", *arguments)
        assert finished.error_ids == [expected] and finished.code in (1, 2, 5), finished
        assert not [p for p in tmp_path.iterdir() if p.name.startswith("target")]
        return finished.err

    source, target = runs[""], tmp_path / "target"
    refused("MOE-0102", "reshard", source, target)
    refused("MOE-0102", "reshard", source, target, "--ranks=2", f"--plan={plans['']}")
    refused("MOE-0107", "reshard", source, source, "--ranks=2")
    other = compiled("olmoe", tmp_path / "sgd.moeplan", "--optimizer=sgd")
    assert "was trained with --optimizer=adamw, the plan with --optimizer=sgd" in refused("MOE-0303", "reshard", source, target, f"--plan={other}")
    forward = tmp_path / "forward.moeplan"
    compile_plan(GOLDEN / "olmoe", forward, *golden_options("olmoe"))
    refused("MOE-0508", "reshard", source, target, f"--plan={forward}")
    refused("MOE-0106", "reshard", tmp_path / "nothing", target, "--ranks=2")
    assert "--plan=FILE" in refused("MOE-0102", "export-hf", source, target)
    refused("MOE-0102", "export-hf", source, target, f"--plan={plans['']}")
    words = refused("MOE-0204", "export-hf", source, target, f"--plan={plans['']}", f"--model={GOLDEN / 'mixtral'}")
    assert 'model_type is "mixtral"' in words and "class olmoe" in words
    done("reshard", source, tmp_path / "damaged", "--ranks=1")
    file = tmp_path / "damaged" / "step-2" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    for arguments in (("verify",), ("reshard", "--ranks=2"), ("export-hf", f"--plan={plans['']}", f"--model={GOLDEN / 'olmoe'}")):
        words = [arguments[0], tmp_path / "damaged", *([target] if arguments[0] != "verify" else []), *arguments[1:]]
        if arguments[0] == "export-hf":  # the damaged tensor may be the optimizer's
            assert run_tool("moe-ckpt", *words).code in (0, 2)
        else:
            assert re.search(r"tensor \S+.* is damaged", refused("MOE-0307", *words))


@pytest.mark.parametrize("mesh", ("", "dp=2,ep=2 zero=3"))
@pytest.mark.parametrize("damage", ("bytes", "manifest", "file"))
def test_a_damaged_newest_checkpoint_says_which_older_one_is_whole(mesh, damage, plans, tmp_path):
    def spoil(step):
        file = tmp_path / "run" / f"step-{step}" / ("manifest.json" if damage == "manifest" else "rank-00000.safetensors")
        if damage == "file":
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 4
            file.write_bytes(data)

    def resume(steps=4):
        words = (f"--checkpoint={tmp_path}/run", f"--steps={steps}", "--resume", "--save-every=1", "--keep=3")
        return run_tool("moe-run", plans[mesh], *files("olmoe"), *words)

    assert resume(3).code == 0
    spoil(3)
    refused = resume()
    assert refused.code == 2, refused
    assert "step-3 cannot be used, but" in refused.err and "step-2 is whole" in refused.err, refused
    # What the message says, done.
    moved = re.search(r"mv (\S+) (\S+), then", refused.err).groups()
    assert run_tool("moe-ckpt", "verify", moved[0].replace("step-3", "step-2")).code == 0
    shutil.move(*moved)
    again = resume()
    assert again.code == 0 and "resumed from" in again.err and "step-2" in again.err, again
    for step in (2, 3, 4):
        spoil(step)
    refused = resume(5)
    assert refused.code == 2 and "holds no older checkpoint that is whole (2 older, all damaged)" in refused.err, refused


def floats(directory):
    return checkpoint.read_model(directory)[1]


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_weights_come_back_in_the_models_own_layout(kind, tmp_path):
    """Of steps that change nothing, so that the directory that the run began with says what is right; on meshes that cut every dimension."""
    mesh = "ep=2,tp=2" if has_experts(kind) else "tp=2"
    plan = compiled(kind, tmp_path / "p.moeplan", *STILL, mesh=mesh)
    train(kind, plan, tmp_path / "run", 1)
    done("export-hf", tmp_path / "run", tmp_path / "model", f"--plan={plan}", f"--model={GOLDEN / kind}")
    want, got = floats(GOLDEN / kind), floats(tmp_path / "model")
    unread = set(want) - set(got)
    assert not set(got) - set(want) and len(unread) <= 2, unread  # what a model shares may be there twice
    for name, value in got.items():
        assert value.dtype == np.float32 and value.shape == want[name].shape and value.tobytes() == want[name].tobytes(), name
    assert not done("verify", tmp_path / "model").err


@pytest.mark.parametrize("kind", ["olmoe", "deepseek_v3", "gpt_oss", "granitemoe"])
def test_transformers_goes_on_where_training_ended(kind, tmp_path):
    """After ten AdamW steps: the loss of the model directory is what the run computes next."""
    import torch
    from transformers import AutoModelForCausalLM

    plan = compiled(kind, tmp_path / "p.moeplan", "--lr=1e-3", mesh="dp=2,ep=2")
    train(kind, plan, tmp_path / "run", 10)
    done("export-hf", tmp_path / "run", tmp_path / "model", f"--plan={plan}", f"--model={GOLDEN / kind}", "--max-shard-size=100KB")
    after = train(kind, plan, tmp_path / "run", 11, "--resume")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    ids = torch.tensor(checkpoint.read(GOLDEN / kind / "io.safetensors")["input_ids"].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert abs(loss - after[-1]) <= 1e-5 * loss and after[-1] < 0.7 * after[0]
    # The tensors that transformers has read are, to the bit, those of the checkpoint.
    stored = state(tmp_path / "run" / "step-10")
    exported = floats(tmp_path / "model")
    plain = [name for name in exported if name in stored and "experts" not in name]  # experts may lie in another order
    assert plain and all(exported[n].reshape(-1).tobytes() == stored[n].reshape(-1).tobytes() for n in plain)


def test_micro_batches_leave_nothing_in_checkpoints(plans, tmp_path):
    """Of plans that add up gradients over micro-batches: the same tensors as without, for another mesh and as a model."""
    plan = compiled("olmoe", tmp_path / "p.moeplan", "--micro-batches=2", mesh="ep=2")
    train("olmoe", plan, tmp_path / "run", 2)
    want = state(tmp_path / "run" / "step-2")
    done("reshard", tmp_path / "run", tmp_path / "one", f"--plan={plans['']}")
    done("reshard", tmp_path / "one", tmp_path / "back", f"--plan={plan}")
    assert same(state(tmp_path / "one" / "step-2"), want) and same(state(tmp_path / "back" / "step-2"), want)
    done("export-hf", tmp_path / "run", tmp_path / "model", f"--plan={plan}", f"--model={GOLDEN / 'olmoe'}")
    assert floats(tmp_path / "model").keys() == floats(GOLDEN / "olmoe").keys()


def test_trained_weights_in_another_type(plans, runs, tmp_path):
    trained = ("--plan", plans[""], "--model", GOLDEN / "olmoe" / "config.json")
    done("export-hf", runs["ep=2"], tmp_path / "f32", *trained)
    done("convert", runs["ep=2"], tmp_path / "bf16", *trained, "--dtype=bf16")
    full, half = floats(tmp_path / "f32"), floats(tmp_path / "bf16")
    assert full.keys() == half.keys() and json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, value in full.items():
        assert (checkpoint.to_bf16(value).astype(np.uint32) << 16).view(np.float32).tobytes() == half[name].tobytes()
