"""Shows that every published gate is a value of #moe.router: random logits through moe.route against NumPy, on one rank and on meshes.

MOIRA_SEED chooses the cases. A case in which some choice is nearly a tie is redrawn.
"""

import os

import numpy as np
import pytest

import gate_oracle as oracle
from expert_programs import Program, weight_matrix
from moira import checkpoint, run_plan

SEED = int(os.environ.get("MOIRA_SEED", "20240"))
MARGIN, TOLERANCE = 1e-4, 2e-6
MESHES = ("", "ep=2", "dp=2,ep=2", "ep=4", "dp=2,tp=2")


def real(value):
    return f"{value:.17e} : f64"


def gate_softmax(rng, logits, k):
    renorm = bool(rng.integers(2))
    return f"renorm = {'sum' if renorm else 'none'}", None, oracle.softmax_topk(logits, k, renorm)


def gate_topk_softmax(rng, logits, k):
    return "order = topk_score", None, oracle.topk_softmax(logits, k)


def groups_of(rng, experts, k, least):
    """(groups, keep) that leave k experts, with at least `least` experts a group."""
    fitting = [
        (groups, keep)
        for groups in range(2, experts + 1)
        for keep in range(1, groups + 1)
        if experts % groups == 0 and experts // groups >= least and experts // groups * keep >= k
    ]
    return fitting[rng.integers(len(fitting))]


def gate_deepseek_v2(rng, logits, k):
    groups, keep = groups_of(rng, logits.shape[-1], k, 1)
    text = f"groups = {groups}, group_keep = {keep}, scale = {real(16.0)}"
    return text, None, oracle.deepseek_v2(logits, k, groups, keep, 16.0)


def gate_deepseek_v3(rng, logits, k):
    groups, keep = groups_of(rng, logits.shape[-1], k, 2)
    bias, renorm = 0.3 * rng.standard_normal(logits.shape[-1]), bool(rng.integers(2))
    text = f"score = sigmoid, groups = {groups}, group_keep = {keep}, group_score = top2_sum, scale = {real(2.5)}"
    text += f", renorm = sum, renorm_epsilon = {real(1e-20)}" if renorm else ""
    bias = bias.astype(np.float32)
    return text, bias, oracle.deepseek_v3(logits, bias.astype(np.float64), k, groups, keep, renorm, 2.5)


def gate_deepseek_v4(rng, logits, k):
    bias = (0.3 * rng.standard_normal(logits.shape[-1])).astype(np.float32)
    text = f"score = sqrt_softplus, renorm = sum, renorm_epsilon = {real(1e-20)}, scale = {real(1.5)}"
    return text, bias, oracle.deepseek_v4(logits, bias.astype(np.float64), k, 1.5)


def gate_ernie(rng, logits, k):
    bias = (0.1 * rng.standard_normal(logits.shape[-1])).astype(np.float32)
    norm_min = float(rng.choice((1e-12, 0.5)))  # the large one clamps some sums
    text = f"renorm = sum, renorm_clamp_min = {real(norm_min)}"
    return text, bias, oracle.ernie(logits, bias.astype(np.float64), k, norm_min)


def gate_llama4(rng, logits, k):
    return "score = sigmoid, order = topk_score", None, oracle.llama4(logits, k)


def gate_sparsemixer(rng, logits, k):
    jitter = float(rng.choice((0.01, 0.2)))
    return f"score = sparsemixer, jitter_eps = {real(jitter)}", None, oracle.sparsemixer(logits, k, jitter)


GATES = {name.removeprefix("gate_"): make for name, make in list(globals().items()) if name.startswith("gate_")}


def draw(name, k, number):
    """(program, ids, weights) of a case without near ties."""
    rng = np.random.default_rng([SEED, sorted(GATES).index(name), k, number])
    while True:
        experts, seq = int(rng.choice((8, 12, 16))), int(rng.choice((1, 3, 8)))
        logits = (2 * rng.standard_normal((4, seq, experts))).astype(np.float32)
        text, bias, (ids, weights, margin) = GATES[name](rng, logits.reshape(-1, experts).astype(np.float64), k)
        if margin >= MARGIN:
            break
    states = {} if bias is None else {"bias": bias}
    operands, types = ("%logits_of", "{L}") if bias is None else ("%logits_of bias %bias", f"{{L}}, tensor<{experts}xf32>")
    line = f"%r = moe.route #moe.router<k = {k}, {text}> of {operands} : ({types}) -> {{R}}"
    print(f"seed {SEED}: {line}")
    return Program(logits, k, [line], states), ids, weights


@pytest.mark.parametrize("k", (1, 2, 4))
@pytest.mark.parametrize("name", sorted(GATES))
def test_gate_equals_oracle(name, k, tmp_path):
    program, ids, weights = draw(name, k, 0)
    program.write(tmp_path)
    experts = program.logits.shape[-1]
    got = program.run(tmp_path, run_options=[f"--dump-routing={tmp_path / 'routes.safetensors'}"])
    routes = checkpoint.read(tmp_path / "routes.safetensors")
    assert (routes["layers.0.ids"].reshape(-1, k) == ids).all()
    np.testing.assert_allclose(routes["layers.0.weights"].reshape(-1, k), weights, rtol=TOLERANCE, atol=0)
    want = weight_matrix(ids, weights, experts)
    np.testing.assert_allclose(got["weights"].reshape(-1, experts), want, rtol=TOLERANCE, atol=1e-12)
    # The float64 reference program: its own implementation of every step, to rounding of its float32 outputs.
    run_plan(tmp_path / "p.moeplan", tmp_path, tmp_path / "inputs.safetensors", tmp_path / "f64.safetensors", "--reference=f64")
    reference = checkpoint.read(tmp_path / "f64.safetensors")["weights"]
    np.testing.assert_allclose(reference.reshape(-1, experts), want, rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("name", sorted(GATES))
def test_gate_is_the_same_on_every_mesh(name, tmp_path):
    program, ids, weights = draw(name, 2, 1)
    program.write(tmp_path)
    experts = program.logits.shape[-1]
    want = weight_matrix(ids, weights, experts)
    for mesh in MESHES:
        got = program.run(tmp_path, mesh)["weights"]
        np.testing.assert_allclose(got.reshape(-1, experts), want, rtol=TOLERANCE, atol=1e-12, err_msg=mesh)


def test_redirect_moves_choices_to_fixed_experts(tmp_path):
    program, ids, weights = draw("softmax", 2, 2)
    program.lines = [program.lines[0].replace("%r =", "%gate ="), "%r = moe.redirect %gate first 1 rest 0 : {R}"]
    program.write(tmp_path)
    experts = program.logits.shape[-1]
    want = weight_matrix(np.tile([1, 0], (len(ids), 1)), weights, experts)
    for mesh in MESHES:
        got = program.run(tmp_path, mesh)["weights"]
        np.testing.assert_allclose(got.reshape(-1, experts), want, rtol=TOLERANCE, atol=1e-12, err_msg=mesh)


@pytest.mark.parametrize("mesh", MESHES)
def test_hash_gate_takes_its_experts_from_a_table(mesh, tmp_path):
    """DeepSeek-V4's first layers: a token id says which experts run, the logits how much they count."""
    rng = np.random.default_rng([SEED, 99])
    experts, k, batch, seq = 8, 2, 4, 3
    logits = rng.standard_normal((batch, seq, experts)).astype(np.float32)
    table = np.array([rng.permutation(experts)[:k] for _ in range(batch * seq)], np.int64)
    scores = oracle.sqrt_softplus(logits.reshape(-1, experts).astype(np.float64))
    weights = oracle.take(scores, table)  # token t has the id t
    want = weight_matrix(table, 1.5 * weights / weights.sum(-1, keepdims=True), experts)
    ids = f"tensor<{batch}x{seq}x{k}xi32>"
    lines = [
        f"%choices = moe.lookup %input_ids, %table : (tensor<{batch}x{seq}xi32>, tensor<{batch * seq}x{k}xi32>) -> {ids}",
        f"%r = moe.route_to #moe.router<k = {k}, score = sqrt_softplus, renorm = sum, scale = {real(1.5)}> of %logits_of to %choices"
        f" : ({{L}}, {ids}) -> {{R}}",
    ]
    program = Program(logits, k, lines, {"table": table})
    program.write(tmp_path)
    for reference in ((), ("--reference=f64",)):
        got = program.run(tmp_path, mesh, run_options=reference)["weights"].reshape(-1, experts)
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("k", (1, 2))
@pytest.mark.parametrize("mesh", MESHES)
def test_weights_may_multiply_what_experts_get(mesh, k, tmp_path):
    """Llama 4: the sigmoid of the logit scales the expert's input. A clamp between dispatch and experts tells it from scaling the output."""
    rng = np.random.default_rng([SEED, 98, k])
    experts = 8
    logits = rng.standard_normal((4, 3, experts)).astype(np.float32)
    ids, weights, _ = oracle.llama4(logits.reshape(-1, experts).astype(np.float64), k)
    want = weight_matrix(ids, np.minimum(weights, 0.8), experts)
    assert (weights > 0.8).any() and (weights < 0.8).any()
    line = f"%r = moe.route #moe.router<k = {k}, score = sigmoid, order = topk_score, apply = input> of %logits_of : ({{L}}) -> {{R}}"
    clamp = "%changed = moe.clamp %rows from -1.0 to 0.8 : ({W}) -> {W}"
    program = Program(logits, k, [line], row_lines=(clamp,))
    program.write(tmp_path)
    for reference in ((), ("--reference=f64",)):
        got = program.run(tmp_path, mesh, run_options=reference)["weights"].reshape(-1, experts)
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=1e-12)
