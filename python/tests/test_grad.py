"""Shows that --task=grad gives the golden losses and gradients, and that every mesh gives the gradients of one rank, in the checkpoint's layout."""

import json
import re

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, golden_options, has_experts
from moira import checkpoint, compile_plan, run_plan

# Every kind of axis, alone and together.
MESHES = ("ep=2", "dp=2", "dp=2,ep=2", "tp=2", "ep=2,tp=2", "dp=2,ep=2,tp=2")
PAIRS = [(kind, mesh) for kind in GOLDEN_CLASSES for mesh in MESHES if "ep=" not in mesh or has_experts(kind)]


def gradients(kind, mesh, folder, *options):
    """-> (loss, {checkpoint tensor: gradient}, stderr)"""
    plan, out = folder / "grad.moeplan", folder / "grad.safetensors"
    mesh_option = [f"--mesh={mesh}"] if mesh else []
    compile_plan(GOLDEN / kind, plan, "--task=grad", *golden_options(kind), *mesh_option, "--report=none")
    done = run_plan(plan, GOLDEN / kind, GOLDEN / kind / "io.safetensors", out, *options)
    tensors = checkpoint.read(out)
    loss = float(tensors.pop("loss")[0])
    tensors.pop("dropped_choices", None)
    assert all(name.startswith("grad.") for name in tensors)
    return loss, {name.removeprefix("grad."): value for name, value in tensors.items()}, done.err


def norm(arrays):
    return float(np.sqrt(sum((np.asarray(a, np.float64) ** 2).sum() for a in arrays)))


def check_golden(kind, loss, grads):
    want = float(checkpoint.read(GOLDEN / kind / "io.safetensors")["loss"].reshape(-1)[0])
    assert abs(loss - want) <= 1e-6 * abs(want)
    norms = json.loads((GOLDEN / kind / "grad_norms.json").read_text())
    total = float(np.sqrt(sum(value**2 for value, _ in norms.values())))
    assert abs(norm(grads.values()) - total) <= 1e-5 * total
    # One by one where a parameter of the torch module is a tensor of the checkpoint.
    compared = 0
    for name, (value, shape) in norms.items():
        if name in grads and list(grads[name].shape) == shape:
            assert abs(norm([grads[name]]) - value) <= 1e-4 * value + 1e-6 * total, name
            compared += 1
    assert compared > 5
    # And layer by layer, whatever experts are called.
    for layer, squares in squares_by_layer({name: value**2 for name, (value, _) in norms.items()}).items():
        mine = squares_by_layer({name: norm([value]) ** 2 for name, value in grads.items()})[layer]
        assert abs(np.sqrt(mine) - np.sqrt(squares)) <= 1e-4 * np.sqrt(squares) + 1e-6 * total, layer


def squares_by_layer(squares):
    sums = {}
    for name, value in squares.items():
        layer = re.match(r"(\D*\d+)?", name).group(0)
        sums[layer] = sums.get(layer, 0) + value
    return sums


def check_layout(kind, grads):
    """One gradient for each tensor, of its shape."""
    _, stored = checkpoint.read_model(GOLDEN / kind)
    for name, gradient in grads.items():
        assert gradient.shape == stored[name].shape, name
    floating = {name for name, value in stored.items() if value.dtype.kind == "f"}
    assert set(grads) == floating


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_golden_gradients(kind, tmp_path):
    loss, grads, _ = gradients(kind, "", tmp_path)
    check_layout(kind, grads)
    check_golden(kind, loss, grads)


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_reference_gradients(kind, tmp_path):
    loss, grads, _ = gradients(kind, "", tmp_path, "--reference=f64")
    check_golden(kind, loss, grads)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_every_mesh_gives_the_gradients_of_one_rank(pair, tmp_path):
    kind, mesh = pair
    loss, grads, _ = gradients(kind, mesh, tmp_path)
    check_golden(kind, loss, grads)
    (tmp_path / "one").mkdir()
    one_loss, one, _ = gradients(kind, "", tmp_path / "one")
    assert abs(loss - one_loss) <= 1e-6 * abs(one_loss)
    largest = max(np.abs(g).max() for g in one.values())
    for name, want in one.items():
        difference = np.abs(grads[name] - want).max()
        assert difference <= 1e-5 * np.abs(want).max() + 1e-7 * largest, name


def test_labels_are_optional_for_a_decoder(tmp_path):
    """The ids as labels give the same loss; an ignored label is left out of the mean."""
    kind = "olmoe"
    loss, _, _ = gradients(kind, "", tmp_path)
    given = checkpoint.read(GOLDEN / kind / "io.safetensors")
    ids = given["input_ids"]

    def loss_with(labels):
        checkpoint.write(tmp_path / "in.safetensors", {"input_ids": ids, "labels": labels})
        run_plan(tmp_path / "grad.moeplan", GOLDEN / kind, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
        return float(checkpoint.read(tmp_path / "out.safetensors")["loss"][0])

    assert loss_with(ids) == loss
    logits = given["logits"].astype(np.float64)
    labels = ids.copy()
    labels[1, 5:] = -100
    log_z = np.log(np.exp(logits).sum(-1))
    losses = (log_z - np.take_along_axis(logits, np.maximum(np.roll(labels, -1, 1), 0)[..., None], 2)[..., 0])[:, :-1]
    want = losses[labels[:, 1:] != -100].mean()
    assert abs(loss_with(labels) - want) <= 1e-5 * want
