"""Shows that --router-noise=on multiplies what gates read by the factors that the draws' definition gives, or chooses what they choose (SparseMixer), the same on every mesh,
and trains as transformers does with them.

The draws are made again in NumPy, from Philox as its paper has it.
"""

import json
import shutil

import numpy as np
import pytest

from capacity_oracle import philox
from common import GOLDEN, golden_options
from moira import checkpoint, compile_plan, run_plan, run_tool
from training_state import state

EPS = 0.3


def factors(seed, step, layer, tokens, width, eps):
    """The factors of the elements of these tokens, [tokens, width]."""
    draws = [
        [word for q in range(-(-width // 4)) for word in philox(seed | 1 << 63, (int(token), q, layer, step))][:width] for token in tokens
    ]
    return 1 + eps * (2 * (np.array(draws, np.float64) + 0.5) / 2**32 - 1)


def uniforms(seed, step, layer, tokens, choice, experts):
    """What SparseMixer draws for a choice of these tokens, [tokens, experts + 1]: a number for each expert, and one for the midpoint."""
    first = choice * (experts // 4 + 1)
    draws = [
        [word for q in range(first, first + experts // 4 + 1) for word in philox(seed | 1 << 63, (int(token), q | 1 << 31, layer, step))][: experts + 1]
        for token in tokens
    ]
    return (np.array(draws, np.float64) + 0.5) / 2**32


def jittered(folder, x, step, part, seed, layer, eps, mode=()):
    b, s, d = x.shape
    kind, number = f"tensor<{b}x{s}x{d}xf32>", "tensor<1xi32>"
    (folder / "p.mlir").write_text(
        f'func.func @forward(%x: {kind} {{moe.name = "x"}}, %s: {number} {{moe.name = "step"}}, %p: {number} {{moe.name = "part"}}) -> ({kind} {{moe.name = "y"}}) {{\n'
        f"  %y = moe.jitter %x at %s part %p eps {eps} layer {layer} seed {seed} : ({kind}, {number}, {number}) -> {kind}\n"
        f"  return %y : {kind}\n}}\n"
    )
    compile_plan(folder / "p.mlir", folder / "p.moeplan", "--report=none")
    checkpoint.write(folder / "in.safetensors", {"x": x, "step": np.array([step], np.int32), "part": np.array([part], np.int32)})
    run_plan(folder / "p.moeplan", folder, folder / "in.safetensors", folder / "out.safetensors", *mode)
    return checkpoint.read(folder / "out.safetensors")["y"]


@pytest.mark.parametrize("step, part, seed, layer", ((1, 0, 0, 0), (7, 0, 0, 3), (2**31 - 1, 2, 2**40 + 5, 11)))
@pytest.mark.parametrize("width", (8, 7))
def test_factors_are_the_definition_s(step, part, seed, layer, width, tmp_path):
    x = np.random.default_rng(5).standard_normal((2, 3, width))
    want = x.reshape(-1, width) * factors(seed, step, layer, range(6 * part, 6 * part + 6), width, EPS)
    got = jittered(tmp_path, x, step, part, seed, layer, EPS, ("--reference=f64",))
    np.testing.assert_allclose(got.reshape(-1, width), want, rtol=1e-14)
    narrow = x.astype(np.float32)
    got = jittered(tmp_path, narrow, step, part, seed, layer, EPS)
    np.testing.assert_allclose(got.reshape(-1, width), narrow.reshape(-1, width) * (want / x.reshape(-1, width)), rtol=1.2e-7)


def test_factors_are_uniform_and_independent(tmp_path):
    """65,536 draws with a fixed seed: moments, a histogram, and no correlation between neighbours, steps or layers."""
    ones = np.ones((8, 64, 128))
    draws = {
        key: (jittered(tmp_path, ones, *key, EPS, ("--reference=f64",)).reshape(-1) - 1) / EPS
        for key in ((1, 0, 0, 0), (2, 0, 0, 0), (1, 0, 0, 1), (1, 1, 0, 0), (1, 0, 9, 0))
    }
    n = ones.size
    for u in draws.values():
        assert -1 < u.min() < -0.999 and 0.999 < u.max() < 1
        assert abs(u.mean()) < 5 / np.sqrt(3 * n) and abs((u**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / n)
        counts = np.histogram(u, 64, (-1, 1))[0]
        assert ((counts - n / 64) ** 2).sum() / (n / 64) < 63 + 5 * np.sqrt(126)
        for lag in (1, 4, 128):
            assert abs((u[lag:] * u[:-lag]).mean()) < 5 / 3 / np.sqrt(n)
    first, *others = draws.values()
    for other in others:
        assert abs((first * other).mean()) < 5 / 3 / np.sqrt(n)


def noisy(kind, folder, eps=EPS):
    """A golden model whose config has this noise."""
    model = folder / kind
    shutil.copytree(GOLDEN / kind, model)
    config = json.loads((model / "config.json").read_text())
    noise = {"router_jitter_noise": eps, "input_jitter_noise": 0.1} if kind == "phimoe" else {"router_jitter_noise": eps}
    (model / "config.json").write_text(json.dumps({**config, **noise}))
    return model


def train(model, kind, folder, *options, steps=3, run=()):
    plan = folder / "train.moeplan"
    compile_plan(model, plan, *golden_options(kind), "--task=train", "--lr=1e-3", *options)
    files = (f"--weights={GOLDEN / kind}", f"--inputs={GOLDEN / kind}/io.safetensors", f"--metrics={folder}/m.jsonl")
    done = run_tool("moe-run", plan, *files, f"--steps={steps}", *run)
    assert done.code == 0, done
    return [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]


def losses(steps):
    return np.array([[s["loss"], s["grad_norm"]] for s in steps])


@pytest.mark.parametrize("kind", ("mixtral", "switch_transformers", "phimoe"))
def test_noise_is_the_same_on_every_mesh(kind, tmp_path):
    model = noisy(kind, tmp_path)
    want = losses(train(model, kind, tmp_path, "--router-noise=on"))
    for options in (
        ("--mesh=dp=2",),
        ("--mesh=ep=4",),
        ("--mesh=dp=2,ep=2,tp=2", "--zero=3"),
        ("--micro-batches=2",),
        ("--micro-batches=2", "--mesh=ep=2", "--zero=2", "--ragged-bound=1"),
        ("--recompute=full", "--mesh=ep=2"),
    ):
        got = losses(train(model, kind, tmp_path, "--router-noise=on", *options))
        np.testing.assert_allclose(got, want, rtol=2e-5, err_msg=str(options))
    np.testing.assert_allclose(losses(train(model, kind, tmp_path, "--router-noise=on", run=("--reference",))), want, rtol=2e-5)
    for other in ((), ("--router-noise=on", "--noise-seed=1")):
        assert np.abs(losses(train(model, kind, tmp_path, *other)) / want - 1).max() > 1e-4, other


@pytest.mark.parametrize("mesh", ((), ("--mesh=dp=2,ep=2", "--zero=3"), ("--mesh=ep=2", "--micro-batches=2")))
@pytest.mark.parametrize("kind", ("mixtral", "phimoe"))
def test_a_resumed_run_draws_as_one_that_went_on(kind, mesh, tmp_path):
    """Three steps, and three from the checkpoint, are the six of one run, to the bit."""
    model, found = noisy(kind, tmp_path), {}
    for name, parts in (("whole", (6,)), ("parts", (3, 6))):
        for steps in parts:
            more = ("--resume",) if steps > parts[0] else ()
            found[name] = train(model, kind, tmp_path, "--router-noise=on", *mesh, steps=steps, run=(f"--checkpoint={tmp_path / name}", *more))
    assert (losses(found["parts"])[-3:] == losses(found["whole"])[-3:]).all()
    want, got = (state(tmp_path / name / "step-6") for name in ("whole", "parts"))
    assert got.keys() == want.keys() and all(got[name].tobytes() == want[name].tobytes() for name in want)
    # Without the noise it would have been another run.
    assert (losses(train(model, kind, tmp_path, *mesh, steps=6))[-3:] != losses(found["whole"])[-3:]).all()


def test_without_it_a_plan_is_what_it_was(tmp_path):
    """The noise of a config counts only if it is asked for."""
    plans = []
    for model, options in ((GOLDEN / "mixtral", ()), (noisy("mixtral", tmp_path), ("--router-noise=off",))):
        compile_plan(model, tmp_path / "p.moeplan", *golden_options("mixtral"), "--task=train", *options)
        plans.append((tmp_path / "p.moeplan").read_bytes())
    assert plans[0] == plans[1]


@pytest.mark.parametrize("kind", ("mixtral", "switch_transformers"))
def test_a_step_is_transformers_s_with_the_same_draws(kind, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = noisy(kind, tmp_path)
    given = checkpoint.read(GOLDEN / kind / "io.safetensors")
    auto = transformers.AutoModelForCausalLM if kind == "mixtral" else transformers.AutoModelForSeq2SeqLM
    made = auto.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").train()
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    calls = []

    def drawn(self, low, high):
        assert (low, high) == (pytest.approx(1 - EPS), pytest.approx(1 + EPS))
        calls.append(self.shape)
        tokens = int(np.prod(self.shape[:-1]))
        return torch.tensor(factors(3, 1, len(calls) - 1, range(tokens), self.shape[-1], EPS), dtype=self.dtype).reshape(self.shape)

    monkeypatch.setattr(torch.Tensor, "uniform_", drawn)
    if kind == "switch_transformers":
        # Its router multiplies in place, which the experts would see in one type and not in another; the paper has the gate alone see it.
        module = transformers.models.switch_transformers.modeling_switch_transformers
        forward = module.SwitchTransformersTop1Router.forward
        monkeypatch.setattr(module.SwitchTransformersTop1Router, "forward", lambda self, x: forward(self, x.clone()))
    names = ("input_ids", "labels", "attention_mask", "decoder_input_ids")
    inputs = {name: torch.tensor(given[name].astype(np.int64)) for name in names if name in given}
    if kind == "mixtral":
        inputs["labels"] = inputs["input_ids"]
    loss = made(**inputs, output_router_logits=False).loss
    loss.backward()
    norm = np.sqrt(sum(float((p.grad**2).sum()) for p in made.parameters() if p.grad is not None))
    got = train(model, kind, tmp_path, "--router-noise=on", "--noise-seed=3")[0]
    assert len(calls) > 1
    assert abs(got["loss"] - float(loss)) <= 2e-6 * float(loss) and abs(got["grad_norm"] - norm) <= 2e-5 * norm


def test_a_step_of_sparsemixer_is_transformers_s_with_the_same_draws(tmp_path, monkeypatch):
    """Its gradient is no derivative of its loss: the class has a rule of its own."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = noisy("phimoe", tmp_path)
    ids = checkpoint.read(GOLDEN / "phimoe" / "io.safetensors")["input_ids"].astype(np.int64)
    made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").train()
    experts, tokens, calls, jitters, chosen = made.config.num_local_experts, range(ids.size), [], [], []

    def of_last_choice():
        layer, choice = divmod(len(calls) - 1, 2)
        return torch.tensor(uniforms(3, 1, layer, tokens, choice, experts), dtype=torch.float64)

    def exponential(self):
        calls.append(self.shape)
        return (-torch.log(of_last_choice()[:, :experts])).to(self.dtype).reshape(self.shape)

    def uniform(self, low=None, high=None):
        if low is None:
            return self  # drawn by rand_like
        assert (low, high) == (pytest.approx(0.9), pytest.approx(1.1))
        jitters.append(self.shape)
        if len(jitters) % 2 == 0:
            return torch.ones_like(self)  # transformers multiplies in its router once more
        return torch.tensor(factors(3, 1, len(calls) // 2, tokens, self.shape[-1], 0.1), dtype=self.dtype).reshape(self.shape)

    monkeypatch.setattr(torch.Tensor, "exponential_", exponential)
    monkeypatch.setattr(torch.Tensor, "uniform_", uniform)
    monkeypatch.setattr(torch, "rand_like", lambda x: of_last_choice()[:, experts:].to(x.dtype).reshape(x.shape))
    module = transformers.models.phimoe.modeling_phimoe
    sparsemixer = module.sparsemixer

    def noted(scores, **options):
        weights, selected = sparsemixer(scores, **options)
        chosen.append((selected.reshape(-1, 2), scores.detach().reshape(-1, experts)))
        return weights, selected

    monkeypatch.setattr(module, "sparsemixer", noted)
    loss = made(input_ids=torch.tensor(ids), labels=torch.tensor(ids), output_router_logits=False).loss
    loss.backward()
    norm = np.sqrt(sum(float((p.grad**2).sum()) for p in made.parameters() if p.grad is not None))
    assert len(calls) == 2 * made.config.num_hidden_layers
    # Some choices are not the largest, or this would ask little.
    assert sum(int((selected[:, 0] != scores.argmax(-1)).sum()) for selected, scores in chosen) > 5
    got = train(model, "phimoe", tmp_path, "--router-noise=on", "--noise-seed=3")[0]
    assert abs(got["loss"] - float(loss)) <= 2e-6 * float(loss) and abs(got["grad_norm"] - norm) <= 2e-5 * norm


@pytest.mark.parametrize(
    "kind, options, says",
    (
        ("olmoe", ("--task=train",), "gates have no noise"),
        ("mixtral", ("--task=train",), "router_jitter_noise"),
        ("mixtral", ("--task=grad",), "--router-noise is for --task=train"),
        ("mixtral", ("--task=train", "--target=sm_90"), "--router-noise=on is for --target=host"),
        ("phimoe", ("--task=train", "--target=sm_90"), "--router-noise=on is for --target=host"),
    ),
)
def test_what_has_no_noise_says_so(kind, options, says, tmp_path):
    refused = run_tool("moe-opt", GOLDEN / kind, *options, "--router-noise=on", "-o", tmp_path / "x.moeplan")
    assert refused.code == 1 and says in refused.err and "MOE-0102" in refused.err, refused
