"""Shows that gradients and training in bf16 are those of f32 within the rounding of bf16, with f32's choice of experts: tensor by tensor, step by step, on
every kind of mesh, and no further off than those of PyTorch's own bf16.
"""

import json

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, golden_options, has_experts
from moira import checkpoint, compile_plan, inspect_plan, run_plan, run_tool

# bf16 keeps 8 bits of a number: one rounding is off by 2^-9 of it, those of a whole model behind one another by about 1e-2. The L2 of a tensor's error, in
# units of the tensor: in the mean over a model's tensors, and at worst, of an expert that has a token or two, whose rounding does not average out.
MEAN, WORST = 2e-2, 8e-2
MESHES = ("ep=2", "dp=2", "tp=2", "dp=2,ep=2")
PAIRS = [(kind, mesh) for kind in GOLDEN_CLASSES for mesh in MESHES if "ep=" not in mesh or has_experts(kind)]


def inputs(kind):
    return GOLDEN / kind / "io.safetensors"


def gradients(kind, folder, *options, runner=()):
    """{checkpoint tensor: gradient}, and the loss under "loss\""""
    plan, out = folder / "grad.moeplan", folder / "grad.safetensors"
    compile_plan(GOLDEN / kind, plan, "--task=grad", *golden_options(kind), *options, "--report=none")
    run_plan(plan, GOLDEN / kind, inputs(kind), out, *runner)
    return {name.removeprefix("grad."): value.astype(np.float64) for name, value in checkpoint.read(out).items()}


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """kind → (gradients in f32, the option that names the experts that it chose); each computed once"""
    folder, known = tmp_path_factory.mktemp("f32"), {}

    def of(kind):
        if kind not in known:
            routes = folder / f"{kind}.routes.safetensors"
            options = (f"--dump-routing={routes}",) if has_experts(kind) else ()
            values = gradients(kind, folder, runner=options)
            known[kind] = values, ((f"--route-from={routes}",) if options else ())
        return known[kind]

    return of


def errors(got, want):
    """{tensor: L2 of the difference in units of the tensor's L2}; of what is nothing but rounding in units of 1e-3 of the mean tensor's"""
    norms = {name: np.linalg.norm(value) for name, value in want.items()}
    least = 1e-3 * np.mean(list(norms.values()))
    return {name: np.linalg.norm(got[name] - value) / max(norms[name], least) for name, value in want.items()}


def check(kind, got, want):
    off = errors(got, want)
    worst = max(off, key=off.get)
    print(kind, np.mean(list(off.values())), worst, off[worst])
    # Switch Transformers' scores have no scale, which makes softmax steeper, and its experts get one choice a token.
    allowance = 2 if kind == "switch_transformers" else 1
    assert np.mean(list(off.values())) <= allowance * MEAN
    assert off[worst] <= allowance * WORST, worst
    assert off[worst] > 1e-4, "nothing has been rounded"


# SparseMixer's weights jump where another logit comes near, so that the same experts do not mean the same weights (test_bf16.py).
SMOOTH = [kind for kind in GOLDEN_CLASSES if kind != "phimoe"]


@pytest.mark.parametrize("kind", SMOOTH)
def test_gradients_tensor_by_tensor(kind, exact, tmp_path):
    want, routes = exact(kind)
    check(kind, gradients(kind, tmp_path, "--dtype=bf16", runner=routes), want)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] in SMOOTH], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_meshes_round_like_one_rank(pair, exact, tmp_path):
    kind, mesh = pair
    want, routes = exact(kind)
    check(kind, gradients(kind, tmp_path, "--dtype=bf16", f"--mesh={mesh}", runner=routes), want)


@pytest.mark.parametrize("kind", ("olmoe", "mixtral", "qwen2_moe"))
def test_no_further_off_than_pytorch(kind, tmp_path):
    """transformers under torch.autocast, every expert chosen so that rounding cannot choose others."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, tensors = checkpoint.read_model(GOLDEN / kind)
    config["num_experts_per_tok"] = config.get("num_experts") or config["num_local_experts"]
    model = tmp_path / kind
    checkpoint.write_model(model, config, tensors)
    ids = checkpoint.read(inputs(kind))["input_ids"]
    checkpoint.write(tmp_path / "in.safetensors", {"input_ids": ids})

    def torch_gradients(narrow):
        made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = made(input_ids=torch.tensor(ids), labels=torch.tensor(ids), output_router_logits=False).loss
        loss.backward()
        return {name: value.grad.double().numpy() for name, value in made.named_parameters()}

    exact = torch_gradients(False)
    theirs = errors(torch_gradients(True), exact)
    plan, out = tmp_path / "grad.moeplan", tmp_path / "grad.safetensors"
    compile_plan(model, plan, "--task=grad", *golden_options(kind), "--dtype=bf16", "--report=none")
    run_plan(plan, model, tmp_path / "in.safetensors", out)
    ours = {name.removeprefix("grad."): value.astype(np.float64) for name, value in checkpoint.read(out).items()}
    shared = [name for name in exact if name in ours and ours[name].shape == exact[name].shape]
    off = errors({name: ours[name] for name in shared}, {name: exact[name] for name in shared})
    print(kind, {name: (round(off[name], 5), round(theirs[name], 5)) for name in shared})
    assert len(shared) > 10
    assert np.mean(list(off.values())) <= np.mean([theirs[name] for name in shared])


ADAMW = ("--task=train", "--optimizer=adamw", "--lr=1e-3", "--betas=0.9,0.999", "--eps=1e-8", "--weight-decay=0.01")


def trained(kind, folder, *options, runner=("--steps=10",)):
    plan, metrics = folder / "train.moeplan", folder / "m.jsonl"
    compile_plan(GOLDEN / kind, plan, *golden_options(kind), *ADAMW, *options, "--report=none")
    finished = run_tool("moe-run", plan, f"--weights={GOLDEN / kind}", f"--inputs={inputs(kind)}", f"--metrics={metrics}", *runner)
    assert finished.code == 0, finished
    return np.array([json.loads(line)["loss"] for line in metrics.read_text().splitlines()])


# In units of the first loss, of which these runs lose a half. A loss is a mean over tokens, so that the rounding of a step hardly shows; what shows after
# ten is what a rate of 1e-3 makes of it and tokens that go to other experts. Where a token has one expert, or a second that depends on the first, its
# whole way changes.
LOSS_TOLERANCE = {kind: 5e-2 if kind in ("phimoe", "switch_transformers") else 1e-2 for kind in GOLDEN_CLASSES}


@pytest.mark.parametrize("kind", GOLDEN_CLASSES)
def test_training_follows_f32(kind, tmp_path):
    want = checkpoint.read(inputs(kind))["adamw_losses"]
    got = trained(kind, tmp_path, "--dtype=bf16")
    off = np.max(np.abs(got - want)) / want[0]
    print(kind, off)
    assert off <= LOSS_TOLERANCE[kind]


@pytest.mark.parametrize("mesh", ("ep=2", "dp=2,ep=2", "tp=2"))
def test_training_on_meshes(mesh, tmp_path):
    one = trained("olmoe", tmp_path, "--dtype=bf16")
    off = np.max(np.abs(trained("olmoe", tmp_path, "--dtype=bf16", f"--mesh={mesh}") - one)) / one[0]
    assert off <= LOSS_TOLERANCE["olmoe"]


NARROW = ("--dtype=bf16", "--grad-dtype=bf16")


@pytest.mark.parametrize("kind", ("olmoe", "qwen3_moe", "nllb_moe"))
def test_narrow_gradients_are_the_wide_ones_rounded(kind, exact, tmp_path):
    routes = exact(kind)[1]
    wide, narrow = (gradients(kind, tmp_path, *options, runner=routes) for options in (NARROW[:1], NARROW))
    # The upper half of f32's bits is bf16.
    rounded = [name for name in wide if name != "loss" and not np.any(narrow[name].astype(np.float32).view(np.uint32) & 0xFFFF)]
    assert 0 < len(rounded) < len(wide)
    assert any("experts" in name for name in rounded) and not any("norm" in name for name in rounded)
    for name, value in wide.items():
        # Half of the last of eight bits; of f32's sums, which other gradients are, nothing.
        off = np.abs(narrow[name] - value) - (np.abs(value) * 2.0**-8 if name in rounded else 0)
        assert np.max(off) <= 0, name


@pytest.mark.parametrize("options", (("--mesh=dp=2,ep=2", "--zero=1"), ("--mesh=tp=2",), ("--micro-batches=2",), ("--clip-norm=1",)), ids=" ".join)
def test_training_with_narrow_gradients(options, tmp_path):
    wide = trained("olmoe", tmp_path, "--dtype=bf16", *options)
    narrow = trained("olmoe", tmp_path, *NARROW, *options)
    off = np.max(np.abs(narrow - wide)) / wide[0]
    print(options, off)
    assert 0 < off <= LOSS_TOLERANCE["olmoe"]


@pytest.mark.parametrize("options", (("--optimizer=adafactor",), ("--optimizer=sgd", "--momentum=0.9", "--lr=0.1"), ("--offload=optimizer",)), ids=" ".join)
def test_optimizers_take_narrow_gradients(options, tmp_path):
    lines = []
    for narrow in ((), NARROW[1:]):
        plan, metrics = tmp_path / "train.moeplan", tmp_path / "m.jsonl"
        compile_plan(GOLDEN / "olmoe", plan, *golden_options("olmoe"), "--task=train", *NARROW[:1], *narrow, *options, "--report=none")
        finished = run_tool("moe-run", plan, f"--weights={GOLDEN / 'olmoe'}", f"--inputs={inputs('olmoe')}", f"--metrics={metrics}", "--steps=5")
        assert finished.code == 0, finished
        lines.append(np.array([json.loads(line)["loss"] for line in metrics.read_text().splitlines()]))
    assert 0 < np.max(np.abs(lines[1] - lines[0])) <= LOSS_TOLERANCE["olmoe"] * lines[0][0]


def test_weights_are_kept_in_f32(tmp_path):
    """Ten steps of 1e-5 are below what bf16 can tell apart; the weights move all the same. And a run may change the type that it computes in."""
    options, run = ("--lr=1e-5", "--weight-decay=0"), f"--checkpoint={tmp_path}/run"
    trained("olmoe", tmp_path, "--dtype=bf16", *options, runner=("--steps=1", run, "--save-every=1"))
    first = checkpoint.read(tmp_path / "run" / "step-1" / "rank-00000.safetensors")
    before = checkpoint.read(GOLDEN / "olmoe" / "model.safetensors")
    moved = np.abs(first["lm_head.weight"] - before["lm_head.weight"])
    assert first["lm_head.weight"].dtype == np.float32
    assert 0.9e-5 < np.median(moved) < 1.1e-5
    losses = trained("olmoe", tmp_path, "--dtype=f32", *options, runner=("--steps=2", run, "--resume"))
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_weights_lie_as_in_f32(pair, tmp_path):
    """Rounding a weight changes nothing in how it is cut."""
    kind, mesh = pair
    cuts = []
    for dtype in ("f32", "bf16"):
        plan = tmp_path / f"{dtype}.moeplan"
        compile_plan(GOLDEN / kind, plan, *golden_options(kind), *ADAMW, f"--dtype={dtype}", f"--mesh={mesh}", "--report=none")
        program = next(p for p in inspect_plan(plan)["programs"] if not p["reference"])
        cuts.append({w["name"]: (w["dtype"], w["axes"], w["pads"]) for w in program["weights"]})
    assert cuts[0] == cuts[1]
