"""Shows that a batch that is taken in parts gives the step of the whole batch: the same losses, norms and weights, on meshes, where parts have unequal
numbers of labels, where every part must be repeated, and across an end in between.
"""

import json

import numpy as np
import pytest

from common import GOLDEN, relative_error
from moira import checkpoint, compile_plan, run_plan, run_tool
from test_train import write_dataset

B, S, T = 8, 12, 6
SGD = ("--optimizer=sgd", "--lr=0.05", "--momentum=0.9")


def batch(kind, folder):
    """B rows, of which the first ones have hardly any label."""
    config = json.loads((GOLDEN / kind / "config.json").read_text())
    draw = np.random.default_rng(7)
    ids = draw.integers(10, config["vocab_size"], (B, S))
    tensors = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    tensors["attention_mask"][3, 9:] = 0
    if config.get("is_encoder_decoder"):
        tensors["decoder_input_ids"] = draw.integers(10, config["vocab_size"], (B, T))
        tensors["labels"] = draw.integers(10, config["vocab_size"], (B, T))
    else:
        tensors["labels"] = ids.copy()
    tensors["labels"][:2, 2:] = -100
    tensors["labels"][5, :3] = -100
    file = folder / f"{kind}.safetensors"
    checkpoint.write(file, {name: value.astype(np.int32) for name, value in tensors.items()})
    return file


def compiled(kind, folder, *options):
    plan = folder / "train.moeplan"
    length = ("--dec-seq=6",) if json.loads((GOLDEN / kind / "config.json").read_text()).get("is_encoder_decoder") else ()
    compile_plan(GOLDEN / kind, plan, "--task=train", f"--batch={B}", f"--seq={S}", *length, *options)
    return plan


def train(kind, plan, inputs, *options):
    """-> the metrics of every step"""
    metrics = plan.with_suffix(".jsonl")
    finished = run_tool("moe-run", plan, f"--weights={GOLDEN / kind}", f"--inputs={inputs}", f"--metrics={metrics}", *options)
    assert finished.code == 0, finished
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def state(directory):
    """-> every tensor of a training checkpoint, put together from the ranks' boxes"""
    manifest = json.loads((directory / "manifest.json").read_text())["manifest"]
    data = [(directory / file["name"]).read_bytes() for file in manifest["files"]]
    tensors = {}
    for tensor in manifest["tensors"]:
        assert tensor["dtype"] == "f32"
        whole = tensors[tensor["name"]] = np.full(tensor["shape"], np.nan, np.float32)
        for box in tensor["boxes"]:
            part = np.frombuffer(data[box["file"]], "<f4", int(np.prod(box["extent"])), box["offset"]).reshape(box["extent"])
            whole[tuple(slice(s, s + e) for s, e in zip(box["start"], box["extent"]))] = part
    return tensors


def check_equal(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert np.allclose(got[name], value, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(value).max())), (name, np.abs(got[name] - value).max())


def check_same_run(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert abs(one["loss"] - other["loss"]) <= 1e-6 * other["loss"], (one, other)
        assert abs(one["grad_norm"] - other["grad_norm"]) <= 1e-5 * other["grad_norm"], (one, other)
        assert one["expert_load_max_over_mean"] == other["expert_load_max_over_mean"]


KINDS = ("olmoe", "deepseek_v3", "gpt_oss", "mt5")
PARTS = (("", 2), ("", 4), ("dp=2", 4), ("tp=2", 2), ("ep=2", 4), ("dp=2,ep=2", 2), ("ep=2,tp=2", 4))


@pytest.mark.parametrize("kind,mesh,parts", [(kind, *layout) for kind in KINDS for layout in PARTS if "ep=" not in layout[0] or kind != "mt5"])  # mt5 has no experts
def test_parts_give_the_step_of_the_whole_batch(kind, mesh, parts, tmp_path):
    inputs = batch(kind, tmp_path)
    clip = "--clip-norm=0.5"
    want = train(kind, compiled(kind, tmp_path, *SGD, clip), inputs, "--steps=3", f"--checkpoint={tmp_path}/one")
    assert all(step["grad_norm"] > 0.5 for step in want)
    # With a bound of one row every first part must be repeated: what was added twice would show.
    options = (f"--micro-batches={parts}", *([f"--mesh={mesh}"] if mesh else []), *(["--ragged-bound=1"] if "ep=" in mesh else []))
    got = train(kind, compiled(kind, tmp_path, *SGD, clip, *options), inputs, "--steps=3", f"--checkpoint={tmp_path}/parts")
    check_same_run(got, want)
    check_equal(state(tmp_path / "parts" / "step-3"), state(tmp_path / "one" / "step-3"))


def test_adamw_and_the_reference_program(tmp_path):
    """The reference program takes the batch as a whole, so it is what the parts are held against."""
    inputs = batch("mixtral", tmp_path)
    plan = compiled("mixtral", tmp_path, "--mesh=dp=2,ep=2", "--micro-batches=4", "--lr=1e-3")
    want = train("mixtral", plan, inputs, "--steps=3", "--reference=f64")
    got = train("mixtral", plan, inputs, "--steps=3")
    for one, other in zip(got, want):
        assert abs(one["loss"] - other["loss"]) <= 1e-5 * other["loss"]
        assert abs(one["grad_norm"] - other["grad_norm"]) <= 1e-4 * other["grad_norm"]


def test_labels_need_not_be_given(tmp_path):
    """Then every token but a row's last has one."""
    file = batch("olmoe", tmp_path)
    tensors = checkpoint.read(file)
    del tensors["labels"]
    checkpoint.write(file, tensors)
    want = train("olmoe", compiled("olmoe", tmp_path, *SGD), file, "--steps=2")
    check_same_run(train("olmoe", compiled("olmoe", tmp_path, *SGD, "--micro-batches=2"), file, "--steps=2"), want)


def test_router_losses_are_means_over_the_parts(tmp_path):
    """Held against the losses of the parts, each a batch of a plan of its own."""
    file = batch("olmoe", tmp_path)
    tensors = checkpoint.read(file)
    losses = ("--aux-loss=0.02", "--z-loss=0.003")
    got = train("olmoe", compiled("olmoe", tmp_path, *losses, "--micro-batches=2", "--mesh=dp=2"), file, "--steps=1")[0]
    compile_plan(GOLDEN / "olmoe", tmp_path / "grad.moeplan", "--task=grad", f"--batch={B // 2}", f"--seq={S}", *losses)
    parts = []
    for i in range(2):
        checkpoint.write(tmp_path / "part.safetensors", {name: value[i * B // 2 : (i + 1) * B // 2] for name, value in tensors.items()})
        run_plan(tmp_path / "grad.moeplan", GOLDEN / "olmoe", tmp_path / "part.safetensors", tmp_path / "out.safetensors")
        parts.append(checkpoint.read(tmp_path / "out.safetensors"))
    counts = [np.sum(tensors["labels"][i * B // 2 : (i + 1) * B // 2, 1:] != -100) for i in range(2)]
    assert counts[0] < counts[1]
    want = {name: np.mean([float(part[name][0]) for part in parts]) for name in ("aux_loss", "z_loss")}
    want["ce_loss"] = np.average([float(part["loss"][0]) for part in parts], weights=counts)
    want["loss"] = want["ce_loss"] + 0.02 * want["aux_loss"] + 0.003 * want["z_loss"]
    for name, value in want.items():
        assert abs(got[name] - value) <= 1e-5 * value, name


def test_resumed_between_steps(tmp_path):
    """Sums of a step are in no checkpoint, and a run may go on with another number of parts."""
    inputs = batch("olmoe", tmp_path)
    plan = compiled("olmoe", tmp_path, *SGD, "--micro-batches=2", "--mesh=dp=2")
    whole = train("olmoe", plan, inputs, "--steps=4", f"--checkpoint={tmp_path}/whole")
    assert not [name for name in state(tmp_path / "whole" / "step-4") if "accumulated" in name]
    train("olmoe", plan, inputs, "--steps=2", f"--checkpoint={tmp_path}/parts")
    resumed = train("olmoe", plan, inputs, "--steps=4", f"--checkpoint={tmp_path}/parts", "--resume")
    assert [step["loss"] for step in resumed] == [step["loss"] for step in whole]
    assert all((value == other).all() for value, other in zip(state(tmp_path / "parts" / "step-4").values(), state(tmp_path / "whole" / "step-4").values()))
    train("olmoe", plan, inputs, "--steps=2", f"--checkpoint={tmp_path}/other")
    check_same_run(train("olmoe", compiled("olmoe", tmp_path, *SGD, "--micro-batches=4"), inputs, "--steps=4", f"--checkpoint={tmp_path}/other", "--resume"), whole)


def test_data_is_read_in_the_order_of_the_whole_batch(tmp_path):
    tokens = np.random.default_rng(3).integers(10, 250, 600)
    write_dataset(tmp_path / "a", tokens, [250, 350])

    def run(*options):
        plan = compiled("olmoe", tmp_path, *SGD, *options)
        finished = run_tool("moe-run", plan, "--init=5", f"--data={tmp_path}/a", "--steps=5", f"--metrics={tmp_path}/m.jsonl")
        assert finished.code == 0, finished
        return [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]

    want = run()
    assert len({step["loss"] for step in want}) == 5
    for options in (("--micro-batches=4",), ("--micro-batches=2", "--mesh=dp=2,ep=2")):
        got = run(*options)
        assert relative_error([s["loss"] for s in got], [s["loss"] for s in want]) <= 1e-5


def test_dropped_choices_of_all_parts_are_counted(tmp_path):
    inputs = batch("mixtral", tmp_path)
    plan = compiled("mixtral", tmp_path, "--micro-batches=4", "--capacity-factor=0.5", "--min-capacity=1", "--mesh=ep=2")
    finished = run_tool("moe-run", plan, f"--weights={GOLDEN / 'mixtral'}", f"--inputs={inputs}", "--steps=1")
    layers = json.loads((GOLDEN / "mixtral" / "config.json").read_text())["num_hidden_layers"]
    assert finished.code == 0 and f"of {B * S * 2 * layers} choices dropped" in finished.err, finished


@pytest.mark.parametrize(
    "options,words",
    [
        (("--micro-batches=3",), "1, 2, 4 or 8"),
        (("--micro-batches=8", "--mesh=dp=2"), "--batch / --micro-batches"),
        (("--task=grad", "--micro-batches=2"), "--task=train"),
    ],
)
def test_what_does_not_divide_is_refused(options, words, tmp_path):
    task = () if any("--task" in option for option in options) else ("--task=train",)
    refused = run_tool("moe-opt", GOLDEN / "olmoe", *task, f"--batch={B}", *options, "-o", tmp_path / "x.moeplan")
    assert refused.code in (1, 3) and words in refused.err, refused
