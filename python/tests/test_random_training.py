"""Shows that a mesh never changes what training does: random small models of four classes on random meshes at every stage of ZeRO, three steps, against one rank and the oracle.

The models, meshes, inputs and capacities are those of test_random_mesh.py; the optimizer, what belongs to it and the stage of ZeRO are drawn besides. On one rank every step's loss must
be the oracle's (float64 NumPy, on the weights that the steps before have left, exported from the checkpoints). On the mesh losses must be those of one rank, and so must
after the last step every weight and everything that the optimizer keeps.

What "equal" means. Gradients are float32 sums in an order that depends on the mesh. SGD is linear in them: every element of every weight within TOLERANCE of the tensor's
largest. AdamW divides a gradient by its own size, so where a gradient is nothing but rounding an element may move by lr either way: weights are held to TOLERANCE
in relative L2 over all of them. What optimizers keep (momentum, m; v with squares) is as good as the gradients: every element within TOLERANCE of the tensor's largest,
and of a hundredth of the largest of all tensors, for some gradients are nothing but rounding (those of a gate that chooses all experts and renormalises).

With --deterministic nothing is allowed for: on meshes of dp and ep every report, weight and state is one rank's to the bit, whatever the routing.

MOIRA_SEED chooses the cases, MOIRA_CASES their number; the optimizers take turns. Redrawn, and counted in the summary, is a case
 * whose routing is nearly a tie in any of its steps (gap under 1e-4): it may rightly route differently in float32;
 * that no float32 program can answer to TOLERANCE: one rank that begins with every weight one rounding off (a factor of 1 ± 2^-24) ends more than half of TOLERANCE
   away from where it ends otherwise (norms over two values, for one). Neither asks what a mesh has made of the case.
"""

import json
import os
import re

import numpy as np
import pytest

import oracle
import random_models
from common import relative_error
from moira import checkpoint, compile_plan, run_tool
from training_state import state

SEED = int(os.environ.get("MOIRA_SEED", "20260"))
CASES = int(os.environ.get("MOIRA_CASES", "40"))
GAP, TOLERANCE, STEPS = 1e-4, 1e-5, 3


def draw_optimizer(rng, number, case):
    """moe-opt's options. dp divides what micro-batches take too; a capacity is one of a micro-batch, which the oracle knows nothing of."""
    batch, dp = case.input_ids.shape[0], int((re.search(r"dp=(\d+)", case.mesh) or [0, 1])[1])
    options = [("--optimizer=sgd", "--lr=0.05"), ("--optimizer=sgd", "--momentum=0.9", "--lr=0.05"), ("--optimizer=adamw", "--lr=1e-3")][number % 3]
    more = [f"--weight-decay={rng.choice((0, 0.01, 0.1))}"]
    if rng.random() < 0.4:
        more.append(f"--clip-norm={rng.choice((0.1, 1, 10))}")
    if rng.random() < 0.3:
        more += ["--aux-loss=0.1", "--z-loss=0.01"]
    parts = [n for n in (1, 1, 2, 3) if batch % (n * dp) == 0 and (n == 1 or not case.capacity)]
    if (n := int(rng.choice(parts))) > 1:
        more.append(f"--micro-batches={n}")
    more.append(f"--zero={rng.integers(0, 4)}")
    return ["--task=train", *options, *more]


def draw_labels(rng, case):
    """Sometimes labels of their own, some of which do not count."""
    ids = case.input_ids
    if rng.random() < 0.6:
        return None
    labels = rng.integers(0, case.config["vocab_size"], ids.shape).astype(np.int32)
    labels[rng.random(ids.shape) < 0.2] = -100
    return labels


def loss_of(logits, ids, labels):
    """Mean cross-entropy of the next tokens, or of the labels that count; labels stand where their logits are, one further."""
    logits, labels = logits[:, :-1], (ids if labels is None else labels)[:, 1:]
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    counts = labels >= 0
    rows = np.take_along_axis(log_probs, np.where(counts, labels, 0)[..., None].astype(np.int64), -1)[..., 0]
    return -rows[counts].mean()


class Trained:
    def __init__(self, folder, name, model, plan_options, *run_options):
        self.folder, self.run, self.plan = folder, folder / name, folder / f"{name}.moeplan"
        compile_plan(model, self.plan, *plan_options)
        metrics = folder / f"{name}.jsonl"
        done = run_tool("moe-run", self.plan, f"--weights={model}", f"--inputs={model}/inputs.safetensors", f"--steps={STEPS}", f"--checkpoint={self.run}",
                        f"--metrics={metrics}", *run_options)  # fmt: skip
        assert done.code == 0, done
        steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        self.losses = np.array([step["loss"] for step in steps])
        self.ce_losses = np.array([step.get("ce_loss", step["loss"]) for step in steps])  # without the routers' losses

    def weights(self, model, step):
        """As the model directory has them, after `step` steps."""
        if step == 0:
            return checkpoint.read_model(model)[1]
        target = self.folder / f"{self.run.name}-model-{step}"
        done = run_tool("moe-ckpt", "export-hf", self.run / f"step-{step}", target, f"--plan={self.plan}", f"--model={model}")
        assert done.code == 0, done
        return checkpoint.read_model(target)[1]

    def end(self):
        return state(self.run / f"step-{STEPS}")


def train_clearly(number, tmp_path):
    """-> (case, options, model directory, one rank's training, the oracle's losses and its largest logit, how often it was redrawn for each reason)"""
    rng, ill = np.random.default_rng([SEED, number]), 0
    for redraws in range(1000):
        case = random_models.draw(rng)
        options, labels = draw_optimizer(rng, number, case), draw_labels(rng, case)
        if not ((case.input_ids if labels is None else labels)[:, 1:] >= 0).any():
            continue  # no token that counts
        if oracle.forward(case.config, case.tensors, case.input_ids, case.attention_mask, case.capacity, 1).gap < GAP:
            continue
        folder = tmp_path / str(redraws)
        folder.mkdir()
        case.write(folder)
        inputs = checkpoint.read(folder / "inputs.safetensors")
        if labels is not None:
            checkpoint.write(folder / "inputs.safetensors", {**inputs, "labels": labels})
        mesh, case.mesh = case.mesh, ""
        one_rank = [*case.options, *options]
        case.mesh = mesh
        one = Trained(tmp_path, f"one{redraws}", folder, one_rank, "--save-every=1", f"--keep={STEPS}")
        want = [oracle.forward(case.config, one.weights(folder, s), case.input_ids, case.attention_mask, case.capacity, s + 1) for s in range(STEPS)]
        if min(w.gap for w in want) < GAP:
            continue
        off = Trained(tmp_path, f"off{redraws}", one_rounding_off(rng, folder), one_rank)
        if max(apart(off.end(), one.end(), options)) > TOLERANCE / 2:
            ill += 1
            continue
        losses = np.array([loss_of(w.logits, case.input_ids, labels) for w in want])
        return case, options, folder, one, losses, max(largest(w.logits) for w in want), (redraws - ill, ill)
    raise AssertionError("no case with clear routing in 1000 draws")


def one_rounding_off(rng, model):
    """A copy of the model directory with its weights in float32, each a rounding larger or smaller."""
    config, tensors = checkpoint.read_model(model)
    target = model.with_name(model.name + "-off")
    signs = {name: rng.choice((-1.0, 1.0), value.shape) for name, value in tensors.items()}
    checkpoint.write_model(target, config, {n: (v * (1 + signs[n] * 2.0**-24)).astype(np.float32) for n, v in tensors.items()})
    (target / "inputs.safetensors").write_bytes((model / "inputs.safetensors").read_bytes())
    return target


def kept(name):
    """Which of an optimizer's tensors this is, or "" for a weight."""
    return name.rsplit(".", 1)[1] if re.search(r"\.(adamw\.[mv]|sgd\.b)$", name) else ""


def largest(values):
    return float(np.abs(values).max())


def difference(got, want):
    """The worst element of any tensor, in units of what its tensor may be held to."""
    floor = {kind: max([largest(v) for n, v in want.items() if kept(n) == kind], default=0) * part for kind, part in (("m", 1e-2), ("b", 1e-2), ("v", 1e-4))}
    worst = 0.0
    for name, value in want.items():
        scale = largest(value) + floor.get(kept(name), 0)
        error = largest(got[name].astype(np.float64) - value)
        worst = max(worst, error / scale if error else 0.0)
    return worst


def weights_apart(got, want):
    """Relative L2 over all weights."""
    names = [name for name in want if not kept(name)]
    apart = sum(np.sum((got[n].astype(np.float64) - want[n]) ** 2) for n in names)
    return float(np.sqrt(apart / sum(np.sum(want[n].astype(np.float64) ** 2) for n in names)))


def apart(got, want, options):
    """What is held to TOLERANCE: of SGD the worst element of anything; of AdamW the worst element of what it keeps, and the weights in L2."""
    if "--optimizer=sgd" in options:
        return [difference(got, want)]
    return [difference(got, {name: value for name, value in want.items() if kept(name)}), weights_apart(got, want)]


@pytest.mark.parametrize("number", range(CASES), ids=lambda n: f"case{n}-")
def test_mesh_trains_like_one_rank(number, tmp_path, record_property):
    case, options, folder, one, losses, logit, redraws = train_clearly(number, tmp_path)
    record_property("training_redraws", redraws)
    print(f"seed {SEED} case {number}: {case.config['model_type']} {' '.join([*case.options, *options])}\n{case.config}")
    # A loss is a difference of logits, whose rounding goes by the largest of them, however small the loss is.
    assert np.abs(one.ce_losses - losses).max() <= 1e-6 * max(logit, losses.max()), "one rank against the oracle"
    many = Trained(tmp_path, "many", folder, [*case.options, *options])
    assert relative_error(many.losses, one.losses) <= TOLERANCE
    got, want = many.end(), one.end()
    assert got.keys() == want.keys() and all(got[name].shape == want[name].shape for name in want)
    moved = [name for name, value in state(one.run / "step-1").items() if not np.array_equal(value, want[name])]
    assert moved, "nothing was trained"
    assert max(apart(got, want, options)) <= TOLERANCE
    record_property("training_stage", int(options[-1].removeprefix("--zero=")))
    record_property("training_apart", [relative_error(one.ce_losses, losses), relative_error(many.losses, one.losses), apart(got, want, options)[0], weights_apart(got, want)])


def draw_for_bits(rng, number):
    """-> (case whose mesh and batch --deterministic takes, moe-opt's options)"""
    while True:
        case = random_models.draw(rng)
        mesh = {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", case.mesh)}
        if mesh and "tp" not in mesh and all(size & (size - 1) == 0 for size in mesh.values()):
            break
    micro = 1 if case.capacity else int(rng.choice((1, 1, 2)))
    rows, columns = micro * int(np.prod(list(mesh.values()))) * int(rng.integers(1, 3)), case.input_ids.shape[1] + 1  # each row has a next token
    case.input_ids = rng.integers(0, case.config["vocab_size"], (rows, columns)).astype(np.int32)
    if case.attention_mask is not None:
        case.attention_mask = (rng.random((rows, columns)) < 0.8).astype(np.int32)
        case.attention_mask[0, :2] = 1  # a token that counts
    options = [option for option in draw_optimizer(rng, number, case) if not option.startswith("--micro-batches")]
    return case, [*options, *([f"--micro-batches={micro}"] if micro > 1 else []), "--deterministic"]


@pytest.mark.parametrize("number", range(CASES // 2), ids=lambda n: f"case{n}-")
def test_deterministic_mesh_trains_as_one_rank_to_the_bit(number, tmp_path):
    case, options = draw_for_bits(np.random.default_rng([SEED, number, 1]), number)
    print(f"seed {SEED} case {number}: {case.config['model_type']} {' '.join([*case.options, *options])}\n{case.config}")
    folder = tmp_path / "model"
    folder.mkdir()
    case.write(folder)
    many = Trained(tmp_path, "many", folder, [*case.options, *options])
    case.mesh = ""
    one = Trained(tmp_path, "one", folder, [*case.options, *options])
    assert many.losses.tolist() == one.losses.tolist()
    got, want = many.end(), one.end()
    assert got.keys() == want.keys() and len(want) > 5
    assert not [name for name in want if got[name].tobytes() != want[name].tobytes()]
