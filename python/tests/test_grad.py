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


def outputs(kind, mesh, folder, compiler=(), runner=()):
    """Everything that a run of the golden model's gradients writes."""
    plan, out = folder / "grad.moeplan", folder / "grad.safetensors"
    mesh_option = [f"--mesh={mesh}"] if mesh else []
    compile_plan(GOLDEN / kind, plan, "--task=grad", *golden_options(kind), *mesh_option, *compiler, "--report=none")
    run_plan(plan, GOLDEN / kind, GOLDEN / kind / "io.safetensors", out, *runner)
    return checkpoint.read(out)


def gradients(kind, mesh, folder, *runner):
    """-> (loss, {checkpoint tensor: gradient})"""
    tensors = outputs(kind, mesh, folder, runner=runner)
    loss = float(tensors.pop("loss")[0])
    tensors.pop("dropped_choices", None)
    assert all(name.startswith("grad.") for name in tensors)
    return loss, {name.removeprefix("grad."): value for name, value in tensors.items()}


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


def check_equal(got, want):
    """Every tensor within 1e-5 of its largest value; what is nothing but rounding, within 1e-7 of the largest of all."""
    assert set(got) == set(want)
    largest = max(np.abs(value).max() for value in want.values())
    for name, value in want.items():
        assert np.abs(got[name] - value).max() <= 1e-5 * np.abs(value).max() + 1e-7 * largest, name


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
    loss, grads = gradients(kind, "", tmp_path)
    check_layout(kind, grads)
    check_golden(kind, loss, grads)


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_reference_gradients(kind, tmp_path):
    loss, grads = gradients(kind, "", tmp_path, "--reference=f64")
    check_golden(kind, loss, grads)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_every_mesh_gives_the_gradients_of_one_rank(pair, tmp_path):
    kind, mesh = pair
    loss, grads = gradients(kind, mesh, tmp_path)
    check_golden(kind, loss, grads)
    (tmp_path / "one").mkdir()
    one_loss, one = gradients(kind, "", tmp_path / "one")
    assert abs(loss - one_loss) <= 1e-6 * abs(one_loss)
    check_equal(grads, one)


def test_labels_are_optional_for_a_decoder(tmp_path):
    """The ids as labels give the same loss; an ignored label is left out of the mean."""
    kind = "olmoe"
    loss, _ = gradients(kind, "", tmp_path)
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


@pytest.mark.parametrize("mesh", ("", "dp=2", "tp=2"))
@pytest.mark.parametrize("kind", ("olmoe", "ernie4_5_moe", "xglm", "m2m_100", "mt5"))
def test_a_padding_token_learns_nothing_where_it_stands(kind, mesh, tmp_path):
    """As in transformers: no gradient from embeddings, though from a head that is tied to them; mT5's padding is a token as any other."""
    import torch
    import transformers

    auto = transformers.AutoModelForSeq2SeqLM if kind in ("m2m_100", "mt5") else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(GOLDEN / kind, attn_implementation="eager", dtype=torch.float32).eval()
    given = checkpoint.read(GOLDEN / kind / "io.safetensors")
    pad, inputs = model.config.pad_token_id, {name: given[name].copy() for name in given if name.endswith("input_ids")}
    for ids in inputs.values():
        ids[0, 1::3] = pad
    labels = given["labels"] if "labels" in given else inputs["input_ids"]
    logits = model(**{name: torch.from_numpy(ids) for name, ids in inputs.items()}).logits
    if "labels" not in given:
        logits, labels = logits[:, :-1], labels[:, 1:]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten().long()).backward()
    want = model.get_input_embeddings().weight.grad.numpy()

    plan, out = tmp_path / "grad.moeplan", tmp_path / "grad.safetensors"
    compile_plan(GOLDEN / kind, plan, "--task=grad", *golden_options(kind), *([f"--mesh={mesh}"] if mesh else []))
    checkpoint.write(tmp_path / "in.safetensors", {**inputs, **({"labels": given["labels"]} if "labels" in given else {})})
    run_plan(plan, GOLDEN / kind, tmp_path / "in.safetensors", out)
    grads = checkpoint.read(out)
    name = next(n for n in ("grad.model.embed_tokens.weight", "grad.model.shared.weight", "grad.shared.weight") if n in grads)
    assert (np.abs(grads[name][pad]).max() > 0) == (kind != "olmoe")  # the one with a head of its own
    check_equal({name: grads[name]}, {name: want})


ROUTER_LOSSES = ("--aux-loss=0.02", "--z-loss=0.003")


@pytest.mark.parametrize("mesh", ("dp=2,ep=2", "ep=2,tp=2", "dp=2,ep=2,tp=2"))
def test_router_losses_are_reported_apart_and_the_same_on_every_mesh(mesh, tmp_path):
    plain = outputs("olmoe", "", tmp_path)
    one = outputs("olmoe", "", tmp_path, ROUTER_LOSSES)
    assert one["loss"] == plain["loss"]
    # 2 layers: each balanced loss is at least k = 4, the more so the less even the load is.
    assert one["aux_loss"][0] > 8 and one["z_loss"][0] > 0
    router = "grad.model.layers.0.mlp.gate.weight"
    assert np.abs(one[router] - plain[router]).max() > 1e-4 * np.abs(plain[router]).max()
    check_equal(outputs("olmoe", mesh, tmp_path, ROUTER_LOSSES), one)


def test_a_balance_of_sequences_is_the_mean_of_each_ones_own(tmp_path):
    """Of each row in a program of its own the batch is the sequence. Beside the cross-entropy, whose mean is over labels, that goes for gradients too."""
    ids = checkpoint.read(GOLDEN / "olmoe" / "io.safetensors")["input_ids"].astype(np.int32)

    def added(rows, *options):
        """-> the balancing loss, and what it adds to the gradients"""
        results, file = [], tmp_path / "rows.safetensors"
        checkpoint.write(file, {"input_ids": rows})
        for more in ((), ("--aux-loss=1", *options)):
            plan, out = tmp_path / "p.moeplan", tmp_path / "out.safetensors"
            compile_plan(GOLDEN / "olmoe", plan, "--task=grad", f"--batch={len(rows)}", f"--seq={rows.shape[1]}", *more)
            run_plan(plan, GOLDEN / "olmoe", file, out)
            results.append(checkpoint.read(out))
        plain, with_loss = results
        return with_loss["aux_loss"][0], {n: v.astype(np.float64) - plain[n] for n, v in with_loss.items() if n.startswith("grad.")}

    loss, gradients = added(ids, "--aux-loss-domain=sequence")
    each = [added(ids[i : i + 1]) for i in range(len(ids))]
    assert abs(loss - np.mean([one[0] for one in each])) <= 1e-6 * loss
    assert loss > added(ids)[0] * (1 + 1e-4)  # balance over the batch asks less
    want = {name: np.mean([one[1][name] for one in each], axis=0) for name in gradients}
    size = norm(want.values())
    assert size > 1e-2 and norm(gradients[name] - value for name, value in want.items()) <= 1e-4 * size


@pytest.mark.parametrize("mesh", ("dp=2,ep=2", "ep=2,tp=2"))
def test_a_balance_of_sequences_is_the_same_on_every_mesh(mesh, tmp_path):
    options = (*ROUTER_LOSSES, "--aux-loss-domain=sequence")
    one = outputs("olmoe", "", tmp_path, options)
    check_equal(outputs("olmoe", mesh, tmp_path, options), one)
    check_equal(outputs("olmoe", "", tmp_path, options, ("--reference=f64",)), one)


def test_gradients_with_a_capacity(tmp_path):
    """Dropped choices and the sum that weights are divided by, on every mesh."""
    options = ("--capacity-factor=0.5", "--min-capacity=1")
    one = outputs("mixtral", "", tmp_path, options)
    assert one["dropped_choices"][0] > 0
    reference = outputs("mixtral", "", tmp_path, options, ("--reference=f64",))
    check_equal(one, reference)
    for mesh in ("ep=2", "dp=2,ep=2,tp=2"):
        check_equal(outputs("mixtral", mesh, tmp_path, options), one)


def test_a_small_ragged_bound_changes_nothing(tmp_path):
    first = outputs("mixtral", "dp=2,ep=2", tmp_path)
    again = outputs("mixtral", "dp=2,ep=2", tmp_path, ("--ragged-bound=1",))
    for name, value in first.items():
        assert np.array_equal(value, again[name]), name


@pytest.mark.parametrize("mesh", ("", "tp=2"))
@pytest.mark.parametrize("kind", ("olmoe", "gpt_oss", "deepseek_v3", "qwen2_moe", "nllb_moe", "mt5"))
def test_bf16_gradients_are_near_those_of_f32(kind, mesh, tmp_path):
    got = outputs(kind, mesh, tmp_path, ("--dtype=bf16",))
    want = float(checkpoint.read(GOLDEN / kind / "io.safetensors")["loss"].reshape(-1)[0])
    assert abs(got["loss"][0] - want) <= 5e-3 * want
    norms = json.loads((GOLDEN / kind / "grad_norms.json").read_text())
    total = float(np.sqrt(sum(value**2 for value, _ in norms.values())))
    assert abs(norm(value for name, value in got.items() if name.startswith("grad.")) - total) <= 1e-2 * total
