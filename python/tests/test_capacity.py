"""Shows that a capacity drops what its definition says, and the same on every mesh: random routings through moe.limit against NumPy.

MOIRA_SEED chooses the cases. A case in which a kept and a dropped choice are nearly tied is redrawn.
"""

import json
import os
import shutil

import numpy as np
import pytest

import capacity_oracle as oracle
import gate_oracle
from common import ROOT, relative_error
from expert_programs import Program, weight_matrix
from moira import checkpoint, compile_plan, run_plan, run_tool

SEED = int(os.environ.get("MOIRA_SEED", "20240"))
MARGIN, TOLERANCE = 1e-5, 2e-6
POLICIES = ("position", "probs", "random", "priority")
CAPACITY_GOLDENS = ROOT / "test" / "golden-capacity"
LIMITED = json.loads((CAPACITY_GOLDENS / "configs.json").read_text())
# By batch and sequence: tokens split over dp, over dp and ep, over the sequence, or not at all.
MESHES = {
    (4, 6): ("dp=2", "ep=2", "dp=4", "dp=2,ep=2", "ep=4", "dp=2,ep=2,tp=2", "dp=2,ep=4"),
    (2, 8): ("ep=4", "dp=2,ep=4", "ep=8"),
    (1, 8): ("ep=2", "ep=4", "ep=8", "ep=2,tp=2"),
    (2, 3): ("dp=2", "ep=4", "dp=2,ep=4", "ep=8", "tp=2"),
}


def test_philox_gives_the_published_vectors():
    assert oracle.philox(0, (0, 0, 0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert oracle.philox(ones << 32 | ones, (ones,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert oracle.philox(0x299F31D0 << 32 | 0xA4093822, pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def real(value):
    return f"{value:.17e} : f64"


def draw_rule(rng):
    rule = str(rng.choice(("fixed", "factor", "rounded", "fraction")))
    value = {"fixed": int(rng.integers(0, 5)), "factor": 0.75, "rounded": 0.5, "fraction": 0.2}[rule]
    return rule, float(value), int(rng.choice((0, 0, 2))) if rule != "fixed" else 0


class Case:
    """One capacity on one routing, with what should come out."""

    def __init__(self, shape, k, policy, order, domain, number):
        code = [POLICIES.index(policy), ("token_major", "choice_major").index(order), ("batch", "sequence").index(domain)]
        rng = np.random.default_rng([SEED, *shape, k, *code, number])
        batch, seq = shape
        self.experts, tokens, domains = 8, batch * seq, batch if domain == "sequence" else 1
        while True:
            self.logits = (1.5 * rng.standard_normal((batch, seq, self.experts))).astype(np.float32)
            self.logits[..., 0] += 1.5  # a favourite, so that there is something to drop
            rule, value, least = draw_rule(rng)
            renorm = str(rng.choice(("none", "before", "after")))
            clamp, scale = (1.2e-7 if renorm != "none" else 0.0), float(rng.choice((1.0, 2.5)))
            seed, layer, self.step = (int(rng.integers(1, 2**40)) if policy == "random" else 0), int(rng.integers(0, 50)), int(rng.integers(0, 1000))
            self.ids, weights, gate_margin = gate_oracle.softmax_topk(self.logits.reshape(tokens, -1).astype(np.float64), k, False)
            capacity = oracle.capacity_of(rule, value, least, tokens // domains, self.experts, k)
            self.kept, margin = oracle.keep(self.ids, weights, self.experts, capacity, domains, policy, order, seed, layer, self.step)
            if gate_margin >= 1e-4 and margin >= MARGIN:
                break
        self.want = weight_matrix(self.ids, oracle.weigh(weights, self.kept, renorm, 0.0, clamp, scale), self.experts)
        fields = [f"rule = {rule}", f"value = {real(value)}", f"least = {least}", f"domain = {domain}", f"policy = {policy}", f"order = {order}"]
        fields += [f"renorm = {renorm}", f"renorm_clamp_min = {real(clamp)}", f"scale = {real(scale)}", f"seed = {seed}", f"layer = {layer}"]
        with_step, step_type = (" step %step", ", tensor<1xi32>") if policy == "random" else ("", "")
        self.lines = [
            f"%gate = moe.route #moe.router<k = {k}> of %logits_of : ({{L}}) -> {{R}}",
            f"%r, %dropped = moe.limit #moe.capacity<{', '.join(fields)}> of %gate{with_step} : ({{R}}{step_type}) -> ({{R}}, tensor<2xf32>)",
        ]
        print(f"seed {SEED}: {self.lines[1]}")
        self.k = k
        self.inputs = {"step": np.array([self.step], np.int32)} if policy == "random" else {}

    def program(self):
        return Program(self.logits, self.k, self.lines, inputs=self.inputs)

    def check(self, outputs, where):
        np.testing.assert_allclose(outputs["weights"].reshape(-1, self.experts), self.want, rtol=TOLERANCE, atol=1e-12, err_msg=where)
        assert outputs["dropped_choices"].tolist() == [(~self.kept).sum(), self.kept.size], where


@pytest.mark.parametrize("domain", ("batch", "sequence"))
@pytest.mark.parametrize("order", ("token_major", "choice_major"))
@pytest.mark.parametrize("k", (1, 2, 4))
@pytest.mark.parametrize("policy", POLICIES)
def test_drops_are_the_oracles_on_every_mesh(policy, k, order, domain, tmp_path):
    dropped = 0
    for number, (shape, meshes) in enumerate(MESHES.items()):
        case = Case(shape, k, policy, order, domain, number)
        program = case.program()
        program.write(tmp_path)
        rng = np.random.default_rng([SEED, k, number])
        for mesh in ("", *rng.choice(meshes, 2, replace=False)):
            case.check(program.run(tmp_path, mesh), f"{shape} on {mesh or 'one rank'}")
        run_plan(tmp_path / "p.moeplan", tmp_path, tmp_path / "inputs.safetensors", tmp_path / "f64.safetensors", "--reference=f64")
        case.check(checkpoint.read(tmp_path / "f64.safetensors"), f"{shape}, float64 reference")
        dropped += (~case.kept).sum()
    assert dropped > 0


def test_draws_depend_on_seed_step_and_layer_not_on_the_mesh(tmp_path):
    sets = []
    for seed, layer, step in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 0)):
        case = Case((4, 6), 2, "random", "token_major", "batch", 77)
        case.lines[1] = case.lines[1].split(", value")[0].split("rule")[0] + (
            f"rule = fixed, value = {real(3.0)}, policy = random, seed = {seed}, layer = {layer}> of %gate step %step"
            " : ({R}, tensor<1xi32>) -> ({R}, tensor<2xf32>)"
        )
        case.inputs = {"step": np.array([step], np.int32)}
        program = case.program()
        program.write(tmp_path)
        results = [program.run(tmp_path, mesh)["weights"] > 0 for mesh in ("", "dp=2,ep=2", "dp=4")]
        assert all((result == results[0]).all() for result in results)
        sets.append(results[0].tobytes())
    assert sets[0] == sets[4] and len(set(sets)) == 4


def test_expert_choice_is_a_choice_of_all_with_a_limit(tmp_path):
    """Every token offers itself to all experts, and each expert takes the tokens that like it best."""
    rng = np.random.default_rng([SEED, 5])
    experts, tokens = 8, 12
    logits = rng.standard_normal((2, 6, experts)).astype(np.float32)
    probs = gate_oracle.softmax(logits.reshape(tokens, experts).astype(np.float64))
    room = 3  # two experts a token on average
    want = np.zeros_like(probs)
    for expert in range(experts):
        best = np.argsort(-probs[:, expert], kind="stable")[:room]
        want[best, expert] = probs[best, expert]
    lines = [
        f"%gate = moe.route #moe.router<k = {experts}> of %logits_of : ({{L}}) -> {{R}}",
        f"%r, %dropped = moe.limit #moe.capacity<rule = fraction, value = {real(2 / experts)}, policy = probs> of %gate : ({{R}}) -> ({{R}}, tensor<2xf32>)",
    ]
    program = Program(logits, experts, lines)
    program.write(tmp_path)
    for mesh in ("", "ep=2", "dp=2,ep=2", "ep=8"):
        got = program.run(tmp_path, mesh)
        np.testing.assert_allclose(got["weights"].reshape(tokens, experts), want, rtol=TOLERANCE, atol=1e-12, err_msg=mesh)
        assert got["dropped_choices"].tolist() == [tokens * experts - room * experts, tokens * experts]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_with_a_capacity_is_the_same_on_every_mesh(policy, tmp_path):
    model = ROOT / "examples" / "tiny-moe"
    options = ["--batch=4", "--seq=24", "--capacity-factor=0.5", f"--drop-policy={policy}", "--min-capacity=1"]
    inputs, outputs = model / "inputs.safetensors", {}
    for mesh in ("", "dp=2,ep=2", "ep=4", "dp=4,ep=2", "ep=2,tp=2"):
        compile_plan(model, tmp_path / "p.moeplan", *options, *([f"--mesh={mesh}"] if mesh else []))
        said = run_plan(tmp_path / "p.moeplan", model, inputs, tmp_path / "o.safetensors", "--check").err
        outputs[mesh] = checkpoint.read(tmp_path / "o.safetensors")
        assert relative_error(outputs[mesh]["logits"], outputs[""]["logits"]) <= 1e-5, mesh
        assert outputs[mesh]["dropped_choices"].tolist() == outputs[""]["dropped_choices"].tolist(), mesh
    dropped, offered = outputs[""]["dropped_choices"]
    assert 0 < dropped < offered == 2 * 4 * 24 * 2
    assert f"{dropped:.0f} of {offered:.0f} choices dropped" in said


def test_no_capacity_is_no_limit(tmp_path):
    """A capacity that nobody reaches, and one that is taken away again, leave the model's own numbers."""
    model = ROOT / "examples" / "tiny-moe"
    compile_plan(model, tmp_path / "p.moeplan", "--batch=4", "--seq=24")
    run_plan(tmp_path / "p.moeplan", model, model / "inputs.safetensors", tmp_path / "plain.safetensors")
    plain = checkpoint.read(tmp_path / "plain.safetensors")
    assert list(plain) == ["logits"]
    compile_plan(model, tmp_path / "import.mlir", "--batch=4", "--seq=24", "--capacity-factor=8", "--compile-to=import")
    for options, names in (((), ["dropped_choices", "logits"]), (("--drop-policy=none",), ["logits"])):
        compile_plan(tmp_path / "import.mlir", tmp_path / "p.moeplan", *options)
        run_plan(tmp_path / "p.moeplan", model, model / "inputs.safetensors", tmp_path / "o.safetensors")
        got = checkpoint.read(tmp_path / "o.safetensors")
        assert sorted(got) == sorted(names)
        assert relative_error(got["logits"], plain["logits"]) <= 1e-6
        assert got.get("dropped_choices", [0])[0] == 0


def test_bad_capacity_options_are_refused(tmp_path):
    model = ROOT / "examples" / "tiny-moe"
    for options, text in (
        (["--capacity-factor=-1"], "a number of at least 0"),
        (["--drop-policy=probs"], "needs --capacity-factor"),
        (["--drop-policy=none", "--capacity-factor=1"], "has no meaning"),
        (["--drop-policy=all"], "expects one of"),
    ):
        done = run_tool("moe-opt", model, "--batch=4", "--seq=24", *options, "-o", tmp_path / "p.moeplan")
        assert done.code == 1 and text in done.err, done


@pytest.mark.parametrize("mesh", ("", "ep=2", "ep=4", "dp=2", "dp=2,ep=2", "ep=2,tp=2"))
@pytest.mark.parametrize("name", sorted(LIMITED))
def test_nllb_drops_what_transformers_drops(name, mesh, tmp_path):
    """The golden NLLB-MoE with less room (make_capacity_goldens.py): its capacities, orders, priorities and renormalisations."""
    golden = ROOT / "test" / "golden" / "nllb_moe"
    want = checkpoint.read(CAPACITY_GOLDENS / f"{name}.safetensors")["logits"]
    shutil.copytree(golden, tmp_path / "model")
    config = json.loads((golden / "config.json").read_text()) | LIMITED[name]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    io = checkpoint.read(golden / "io.safetensors")
    checkpoint.write(tmp_path / "in.safetensors", {n: io[n] for n in ("input_ids", "decoder_input_ids")})
    compile_plan(tmp_path / "model", tmp_path / "p.moeplan", "--batch=2", "--seq=24", "--dec-seq=12", *([f"--mesh={mesh}"] if mesh else []))
    run_plan(tmp_path / "p.moeplan", tmp_path / "model", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    got = checkpoint.read(tmp_path / "out.safetensors")
    assert got["dropped_choices"][0] > 0
    assert relative_error(got["logits"], want) <= 1e-5
    assert relative_error(io["logits"], want) > 1e-4  # drops are seen


def deepspeed(logits, k, factor, least, policy):
    """DeepSpeed's top1gating, top2gating ("position-2") and topkgating as matrices of masks, as it computes them: the weights [T,E]."""
    tokens, experts = logits.shape
    gates = gate_oracle.softmax(logits)
    masks = [np.eye(experts)[ids] for ids in np.argsort(-gates, axis=-1, kind="stable")[:, :k].T]
    capacity = max(int(np.ceil((tokens / experts) * (factor * k))), least)
    if policy == "probs":
        scores = gates * sum(masks)
        places = np.argsort(np.argsort(-scores, axis=0, kind="stable"), axis=0)
        masks = [mask * (places < capacity) for mask in masks]
    elif policy == "position-2":
        places = [np.cumsum(mask, axis=0) - 1 for mask in masks]
        places[1] += masks[0].sum(0)
        masks = [mask * (place < capacity) for mask, place in zip(masks, places)]
    else:
        places = np.cumsum(sum(masks), axis=0) - 1
        masks = [mask * (places < capacity) for mask in masks]
    weights = gates * sum(masks)
    return weights if k == 1 else weights / np.maximum(weights.sum(-1, keepdims=True), np.finfo(np.float32).eps)


@pytest.mark.parametrize("k,policy", ((1, "position"), (2, "position-2"), (2, "position"), (4, "position"), (2, "probs"), (4, "probs")))
def test_deepspeeds_gates(k, policy, tmp_path):
    """The attributes that docs/routing.md gives for them. Its random token selection draws otherwise and is not compared."""
    rng = np.random.default_rng([SEED, 11, k, len(policy)])
    experts, factor, least = 8, 0.75, 1
    logits = rng.standard_normal((4, 6, experts)).astype(np.float32)
    logits[..., 2] += 1.0
    want = deepspeed(logits.reshape(24, experts).astype(np.float64), k, factor, least, policy)
    fields = f"rule = factor, value = {real(factor)}, least = {least}, policy = {policy.removesuffix('-2')}"
    if k > 1:
        fields += f", renorm = after, renorm_clamp_min = {real(1.1920929e-7)}"
    if policy == "position-2":
        fields += ", order = choice_major"
    lines = [
        f"%gate = moe.route #moe.router<k = {k}> of %logits_of : ({{L}}) -> {{R}}",
        f"%r, %dropped = moe.limit #moe.capacity<{fields}> of %gate : ({{R}}) -> ({{R}}, tensor<2xf32>)",
    ]
    program = Program(logits, k, lines)
    program.write(tmp_path)
    for mesh in ("", "dp=2,ep=2", "ep=8"):
        got = program.run(tmp_path, mesh)["weights"].reshape(24, experts)
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=1e-12, err_msg=mesh)
    assert (want > 0).sum() < 24 * k
