"""Shows that models described with the Python package run as they are described: small ones of every part against an independent NumPy model,
on one rank and on meshes, and the published recipes at full size as plans."""

import json
import math
import os
import re

import numpy as np
import pytest

from common import ROOT, relative_error
from moira import checkpoint, compile_plan, inspect_plan, run_plan, run_tool
from moira.layers import MLP, Attention, Capacity, Layer, MoE, Norm, Residual, Rope, Router, expert_choice
from moira.models import Decoder, EncoderDecoder, RelativeBias
from moira.program import Program
from moira.recipes import pr_moe, z_code_m3
from moira.weights import initialise
from own_oracle import Oracle, sinusoid

BATCH, SEQ, DEC_SEQ, VOCAB = 4, 16, 12, 250
MESHES = ("", "ep=2", "dp=2,ep=2", "tp=2", "ep=4", "dp=2,ep=2,tp=2")


def files(model, directory, seed, dec_seq=None):
    """Weights (every bias and norm of its own), program and inputs in `directory`; returns tensors and inputs."""
    sizes = {"dec_seq": dec_seq} if dec_seq else {}
    program = model.program(BATCH, SEQ, **sizes)
    model.write(directory, BATCH, SEQ, **sizes)
    initialise(program, directory, seed=seed, std=0.12)
    rng = np.random.default_rng(seed)
    tensors = checkpoint.read(directory / "model.safetensors")
    assert all((t == 1).all() for n, t in tensors.items() if "norm" in n and n.endswith("weight"))
    assert all((t == 0).all() for n, t in tensors.items() if n.endswith("bias") and "relative" not in n)
    tensors = {n: t + np.float32(0.1) * rng.standard_normal(t.shape, np.float32) if "norm" in n or n.endswith("bias") else t for n, t in tensors.items()}
    checkpoint.write(directory / "model.safetensors", tensors)
    inputs = {"input_ids": rng.integers(2, VOCAB, (BATCH, SEQ)).astype(np.int32)}
    if dec_seq:
        inputs["decoder_input_ids"] = rng.integers(2, VOCAB, (BATCH, dec_seq)).astype(np.int32)
        inputs["input_ids"][1, 12:] = 1  # padding
        inputs["attention_mask"] = (inputs["input_ids"] != 1).astype(np.int32)
    checkpoint.write(directory / "inputs.safetensors", inputs)
    return tensors, inputs


def run(directory, mesh, *options, run_options=()):
    plan = directory / "p.moeplan"
    compile_plan(directory / "model.mlir", plan, *([f"--mesh={mesh}"] if mesh else []), *options)
    run_plan(plan, directory, directory / "inputs.safetensors", directory / "o.safetensors", *run_options)
    return checkpoint.read(directory / "o.safetensors")


def check(directory, want, oracle, choices=0):
    assert oracle.gap > 1e-5, f"the seed makes clear choices, not {oracle.gap}"
    for mesh in MESHES:
        got = run(directory, mesh)
        assert relative_error(got["logits"], want) <= 1e-5, f"on mesh {mesh or 'one'}"
        if choices:
            assert got["dropped_choices"].tolist() == [oracle.dropped, choices], f"on mesh {mesh or 'one'}"


def decoder(oracle, inputs, layers, head="head.weight"):
    x = oracle.w["embedding.weight"][inputs["input_ids"]]
    x = oracle.stack(x, "", layers, np.ones(inputs["input_ids"].shape), True)
    return x @ oracle.w[head].T


FORM = ("gelu_tanh", False, True)


@pytest.mark.parametrize("mix", ["sum", "softmax"])
def test_pr_moe(mix, tmp_path):
    """A pyramid of experts with a dense block beside them, added or mixed by a softmax over two."""
    model = pr_moe(layers=4, hidden=48, heads=4, width=64, experts=(4, 8), vocab=VOCAB, mix=mix, k=2)
    tensors, inputs = files(model, tmp_path, seed=3)
    oracle = Oracle(tensors)
    common = {"heads": 4, "norm": "layer", "rope": True, "form": FORM}
    layers = [{**common, **({"experts": (4, 8)[i // 2], "k": 2, "residual": mix} if i % 2 else {})} for i in range(4)]
    check(tmp_path, decoder(oracle, inputs, layers, "embedding.weight"), oracle)


def test_every_part_at_once(tmp_path):
    """Grouped-query attention, norms of queries and keys, a window, shared experts with and without a gate, experts of several numbers, a
    capacity that drops, and expert choice, one after the other."""
    attention = Attention(4, kv_heads=2, head_dim=16, rope=Rope(), qk_norm=Norm(), window=7)
    router, capacity = expert_choice(8, per_token=2)
    silu = ("silu", True, False)
    model = Decoder(
        VOCAB,
        40,
        layers=[
            Layer(attention, MLP(72)),
            Layer(attention, MoE(8, 24, Router(k=2, renorm="sum"), shared=MLP(32), shared_gate=True)),
            Layer(attention, MoE(4, 24, Router(k=2), Capacity("factor", 0.75, policy="probs"), shared=MLP(32))),
            Layer(attention, MoE(8, 24, router, capacity)),
        ],
    )
    tensors, inputs = files(model, tmp_path, seed=11)
    oracle = Oracle(tensors)
    common = {"heads": 4, "kv_heads": 2, "norm": "rms", "rope": True, "qk_norm": True, "window": 7, "form": silu}
    layers = [
        common,
        {**common, "experts": 8, "k": 2, "renorm": True, "shared": True, "shared_gate": True},
        {**common, "experts": 4, "k": 2, "shared": True, "capacity": {"rule": "factor", "value": 0.75, "policy": "probs"}},
        {**common, "experts": 8, "k": 8, "capacity": {"rule": "fraction", "value": 0.25, "policy": "probs"}},
    ]
    want = decoder(oracle, inputs, layers)
    assert oracle.dropped > BATCH * SEQ * 6, "expert choice leaves a token two experts of eight on average"
    check(tmp_path, want, oracle, BATCH * SEQ * (2 + 8))


def draw(rng):
    """A random decoder, as the package and as the oracle have it."""
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    kv, groups, norm, rope = pick(2, 4), pick(1, 2), pick("rms", "layer"), pick(True, False)
    form = (pick("silu", "relu", "gelu_tanh"), pick(True, False), pick(True, False))
    names = dict(zip(("activation", "gated", "bias"), form))
    both, layers = [], []
    for _ in range(pick(1, 2, 3)):
        attention = {"heads": kv * groups, "kv_heads": kv, "window": pick(0, 3, 9), "qk_norm": pick(True, False)}
        common = {**attention, "norm": norm, "rope": rope, "form": form}
        made = Attention(**{**attention, "head_dim": pick(8, 12), "bias": pick(True, False), "rope": Rope() if rope else None, "qk_norm": Norm() if attention["qk_norm"] else None})
        if pick(True, False, False):
            both.append(Layer(made, MLP(pick(24, 40), **names)))
            layers.append(common)
            continue
        dense = MLP(pick(16, 24), **names)
        sparse = {"experts": pick(4, 8, 12), "k": pick(1, 2, 3), "renorm": pick(True, False)}
        options = {}
        if pick(True, False):
            sparse["capacity"] = {"rule": pick("factor", "rounded"), "value": pick(0.5, 1.0), "least": pick(0, 2), "policy": pick("position", "probs", "random"), "seed": 0}
            if sparse["capacity"]["policy"] == "random":
                sparse["capacity"]["seed"] = int(rng.integers(1, 1000))
            options["capacity"] = Capacity(**sparse["capacity"])
        if pick(True, False):
            sparse["residual"] = pick("sum", "softmax")
            options["residual"] = Residual(dense, sparse["residual"])
        if pick(True, False):
            sparse |= {"shared": True, "shared_gate": pick(True, False)}
            options |= {"shared": dense, "shared_gate": sparse["shared_gate"]}
        router = Router(k=sparse["k"], renorm="sum" if sparse["renorm"] else "none")
        if sparse["renorm"] and "capacity" in sparse:
            router = Router(k=sparse["k"])  # renormalised by the capacity, so that kept choices weigh what they would without it
            options["capacity"] = Capacity(**sparse["capacity"], renorm="before")
        both.append(Layer(made, MoE(sparse["experts"], pick(16, 24), router, **options, **names)))
        layers.append({**common, **sparse})
    return Decoder(VOCAB, pick(24, 40), norm=Norm(norm), layers=both), layers


@pytest.mark.parametrize("number", range(int(os.environ.get("MOIRA_CASES", "6"))))
def test_random_models(number, tmp_path):
    """Any parts together; weights whose gates make unclear choices are drawn again."""
    rng = np.random.default_rng([41, number])
    model, layers = draw(rng)
    for _ in range(20):
        tensors, inputs = files(model, tmp_path, seed=int(rng.integers(1 << 30)))
        oracle = Oracle(tensors)
        want = decoder(oracle, inputs, layers)
        if oracle.gap > 1e-5:
            break
    limited = sum(layer["k"] for layer in layers if "capacity" in layer)
    check(tmp_path, want, oracle, BATCH * SEQ * limited)


@pytest.mark.parametrize("capacity", [0.5, 2.0])
def test_z_code_m3(capacity, tmp_path):
    """A small Z-code M3 with padding, with and without drops; the draws of random token selection are the oracle's."""
    sizes = {"encoder_layers": 4, "decoder_layers": 2, "hidden": 48, "width": 64, "heads": 4, "experts": 8, "vocab": VOCAB}
    model = z_code_m3(**sizes, capacity_factor=capacity, least_capacity=0, seed=5)
    tensors, inputs = files(model, tmp_path, seed=2, dec_seq=DEC_SEQ)
    oracle = Oracle(tensors)
    limit = {"rule": "factor", "value": capacity, "policy": "random", "seed": 5}
    common = {"heads": 4, "norm": "layer", "form": ("relu", False, True)}

    def layers(count):
        return [{**common, **({"experts": 8, "k": 1, "capacity": limit} if i % 2 else {})} for i in range(count)]

    table, mask = oracle.w["embedding.weight"], inputs["attention_mask"]

    def embed(ids):
        return table[ids] * math.sqrt(48) + sinusoid(ids, 1, 48)

    memory = oracle.stack(embed(inputs["input_ids"]), "encoder.", layers(4), mask, False)
    x = embed(inputs["decoder_input_ids"])
    x = oracle.stack(x, "decoder.", layers(2), np.ones(x.shape[:2]), True, memory, mask, first=4)
    assert capacity > 1 or oracle.dropped > 10
    check(tmp_path, x @ table.T, oracle, BATCH * (2 * SEQ + DEC_SEQ))


SMALL = {
    "pr-moe": (pr_moe(layers=2, hidden=48, heads=4, width=64, experts=(8,), vocab=VOCAB, mix="softmax", k=2), None),
    "z-code-m3": (z_code_m3(encoder_layers=2, decoder_layers=2, hidden=48, width=64, heads=4, experts=8, vocab=VOCAB), DEC_SEQ),
    "shared": (Decoder(VOCAB, 40, layers=[Layer(Attention(4, rope=Rope(), qk_norm=Norm()), MoE(8, 24, Router(k=2), shared=MLP(32), shared_gate=True))]), None),
}


@pytest.mark.parametrize("name", SMALL)
def test_bf16(name, tmp_path):
    """The same models in bf16, with the choices that f32 makes: close on every mesh."""
    model, dec_seq = SMALL[name]
    files(model, tmp_path, seed=3, dec_seq=dec_seq)
    routes = tmp_path / "routes.safetensors"
    want = run(tmp_path, "", run_options=[f"--dump-routing={routes}"])["logits"]
    model.write(tmp_path, BATCH, SEQ, dtype="bf16", **({"dec_seq": dec_seq} if dec_seq else {}))
    for mesh in ("", "ep=2,tp=2", "dp=2"):
        assert relative_error(run(tmp_path, mesh, run_options=[f"--route-from={routes}"])["logits"], want) <= 2e-2
    assert inspect_plan(tmp_path / "p.moeplan")["dtype"] == "bf16"


def test_relative_positions(tmp_path):
    """T5's biases in both stacks, whose weights the decoder's layers share; a head of its own, and scales."""
    attention = Attention(4)
    sparse = MoE(4, 32, Router(k=1))
    layers = {"encoder": [Layer(attention, MLP(64))] * 2, "decoder": [Layer(attention, sparse, cross=attention)]}
    model = EncoderDecoder(VOCAB, 48, positions=RelativeBias(8, 20), embedding_scale=3.0, head_scale=0.5, **layers)
    tensors, inputs = files(model, tmp_path, seed=7, dec_seq=DEC_SEQ)
    oracle = Oracle(tensors)
    common = {"heads": 4, "norm": "rms", "form": ("silu", True, False), "max_distance": 20}
    table, mask = 3 * oracle.w["embedding.weight"], inputs["attention_mask"]
    memory = oracle.stack(table[inputs["input_ids"]], "encoder.", [common] * 2, mask, False)
    x = table[inputs["decoder_input_ids"]]
    x = oracle.stack(x, "decoder.", [{**common, "experts": 4, "k": 1}], np.ones(x.shape[:2]), True, memory, mask)
    check(tmp_path, 0.5 * x @ oracle.w["head.weight"].T, oracle)


@pytest.mark.parametrize("name, model, sizes, billions", [
    ("z-code-m3", z_code_m3(), {"dec_seq": 128}, (9.9, 10.5)),
    ("pr-moe", pr_moe(), {}, (3.9, 4.3)),
])  # fmt: skip
def test_published_sizes_compile(name, model, sizes, billions, tmp_path):
    """The recipes at full size are plans for 32 ranks, with the parameters that their papers give."""
    model.write(tmp_path, 64, 128, **sizes)
    plan = tmp_path / f"{name}.moeplan"
    finished = compile_plan(tmp_path / "model.mlir", plan, "--mesh=dp=2,ep=16", timeout=300)
    assert billions[0] * 1e9 < inspect_plan(plan)["parameters"] < billions[1] * 1e9, finished


def test_two_programs_of_a_model_have_the_same_weights(tmp_path):
    """Whatever batch, type or number of shards: bf16 numbers are the rounded f32 ones."""
    model = pr_moe(layers=2, hidden=48, heads=4, width=64, experts=(4,), vocab=VOCAB)
    initialise(model.program(1, 8), tmp_path / "a", seed=9)
    initialise(model.program(2, 16, "bf16"), tmp_path / "b", seed=9, dtype="BF16", shard_bytes=40_000)
    (tmp_path / "a" / "config.json").write_text("{}")
    (tmp_path / "b" / "config.json").write_text("{}")
    (_, a), (_, b) = checkpoint.read_model(tmp_path / "a"), checkpoint.read_model(tmp_path / "b")
    assert len(json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())["weight_map"]) == len(a)
    assert set(a) == set(b)
    for name in a:
        rounded = (checkpoint.to_bf16(a[name]).astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(b[name], rounded)
    assert not np.array_equal(a["layers.0.mlp.up.weight"], a["layers.0.mlp.down.weight"].T)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    """docs/write-your-own-moe.md: the model that it describes compiles, and so does a program with the block that it makes."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "write-your-own-moe.md").read_text(), re.DOTALL):
        exec(code, scope)
    compile_plan("my-model/model.mlir", "a.moeplan", "--mesh=dp=2,ep=2")
    p = Program()
    x = p.embedding(p.input("input_ids", (2, 8), least=0, most=8), p.weight("table", (9, 16)))
    p.result("y", scope["swish_gate"](p, x, "gate"))
    (tmp_path / "block.mlir").write_text(p.text())
    compile_plan("block.mlir", "b.moeplan")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Router(k=0), ["k", "0"]),
        (lambda: MoE(4, 8, Router(k=5)), ["5", "4"]),
        (lambda: MLP(8, activation="tanh"), ["tanh", "relu"]),
        (lambda: Residual(MLP(8), "mean"), ["mean", "softmax"]),
        (lambda: Norm("batch"), ["batch"]),
        (lambda: expert_choice(4, 9), ["9", "4"]),
        (lambda: pr_moe(layers=4, experts=(4,)), ["1 numbers", "2 sparse layers"]),
        (lambda: Program("f16"), ["f16"]),
        (lambda: Decoder(9, 10, layers=[Layer(Attention(4), MLP(8))]).program(1, 2), ["layers.0.attention", "4 heads", "10"]),
        (lambda: Decoder(9, 12, layers=[Layer(Attention(4, kv_heads=3), MLP(8))]).program(1, 2), ["3 key heads", "4 query"]),
        (lambda: Decoder(9, 12, layers=[Layer(Attention(4), MLP(8), Attention(4))]).program(1, 2), ["cross-attention", "encoder"]),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_gate_that_makes_no_sense_is_refused_by_moe_opt(tmp_path):
    model = Decoder(9, 8, layers=[Layer(Attention(2), MoE(4, 8, Router(k=2, score="tanh")))])
    finished = run_tool("moe-opt", model.write(tmp_path, 1, 4), "-o", tmp_path / "p.moeplan")
    assert finished.code == 2 and finished.error_ids == ["MOE-0601"], finished


def test_own_model_is_trained_and_exported(tmp_path):
    """docs/write-your-own-moe.md: gradients, training, and a model directory with the trained weights, though there is no config.json."""
    model = Decoder(VOCAB, 48, [Layer(Attention(4, rope=Rope()), MoE(4, width=24, router=Router(k=2, renorm="sum")))] * 2)
    files(model, tmp_path, seed=5)
    gradients = run(tmp_path, "dp=2,ep=2", "--task=grad", run_options=("--check",))
    names = checkpoint.read(tmp_path / "model.safetensors").keys()
    assert {f"grad.{name}" for name in names} | {"loss"} == gradients.keys()
    losses = {}
    for mesh, options in (("", ()), ("dp=2,ep=2", ("--zero=3",))):
        plan, metrics = tmp_path / "train.moeplan", tmp_path / f"{mesh}.jsonl"
        compile_plan(tmp_path / "model.mlir", plan, "--task=train", "--lr=1e-2", *([f"--mesh={mesh}"] if mesh else []), *options)
        done = run_tool("moe-run", plan, f"--weights={tmp_path}", f"--inputs={tmp_path}/inputs.safetensors", "--steps=4", f"--metrics={metrics}",
                        f"--checkpoint={tmp_path}/run-{mesh}")  # fmt: skip
        assert done.code == 0, done
        losses[mesh] = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert relative_error(losses["dp=2,ep=2"], losses[""]) <= 1e-5
    assert abs(losses[""][0] - gradients["loss"][0]) <= 1e-5 and losses[""][-1] < losses[""][0] - 0.1
    done = run_tool("moe-ckpt", "export-hf", tmp_path / "run-dp=2,ep=2", tmp_path / "trained", f"--plan={plan}", f"--model={tmp_path}")
    assert done.code == 0, done
    assert checkpoint.read(tmp_path / "trained" / "model.safetensors").keys() == names
    compile_plan(tmp_path / "model.mlir", plan, "--task=grad")
    run_plan(plan, tmp_path / "trained", tmp_path / "inputs.safetensors", tmp_path / "o.safetensors")
    assert checkpoint.read(tmp_path / "o.safetensors")["loss"][0] < losses[""][-1]
