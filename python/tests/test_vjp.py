"""Shows that every operation's gradient is the derivative of what the operation computes: central differences in f64, on random shapes and values."""

import os

import numpy as np
import pytest

from vjp_programs import Case, check

SEED = int(os.environ.get("MOIRA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))


def normal(rng, *shape):
    return rng.standard_normal(shape)


def sizes(rng, count, low=2, high=5):
    return [int(n) for n in rng.integers(low, high + 1, count)]


def integers(rng, high, *shape):
    return rng.integers(0, high, shape).astype(np.int32)


def embedding(rng):
    b, s, v, d = sizes(rng, 4)
    return Case(
        {"ids": integers(rng, v, b, s), "table": normal(rng, v, d)},
        ["%y = moe.embedding %ids, %table : ({ids}, {table}) -> {y}"],
        {"y": (b, s, d)},
        linear=("table",),
    )


def linear(rng, contract):
    t, k, m, n = sizes(rng, 4)
    inner = (k, m)[:contract]
    return Case(
        {"x": normal(rng, t, 3, *inner), "w": normal(rng, n, 2, *inner)},
        [f"%y = moe.linear %x, %w contract {contract} : ({{x}}, {{w}}) -> {{y}}"],
        {"y": (t, 3, n, 2)},
        linear=("x", "w"),
    )


def head_linear(rng, transposed):
    b, s, h, n, k = sizes(rng, 5)
    w = (h, k, n) if transposed else (h, n, k)
    flag = " transposed" if transposed else ""
    return Case(
        {"x": normal(rng, b, s, h, k), "w": normal(rng, *w)},
        [f"%y = moe.head_linear %x, %w{flag} : ({{x}}, {{w}}) -> {{y}}"],
        {"y": (b, s, h, n)},
        linear=("x", "w"),
    )


def rms_norm(rng, dims):
    b, s, n, m = sizes(rng, 4)
    row = (n, m)[:dims]
    return Case(
        {"x": normal(rng, b, s, *row), "w": normal(rng, *row)},
        ["%y = moe.rms_norm %x, %w eps 1.0e-2 : ({x}, {w}) -> {y}"],
        {"y": (b, s, *row)},
        linear=("w",),
    )


def layer_norm(rng, biased):
    b, s, n = sizes(rng, 3, 3)
    bias = {"b": normal(rng, n)} if biased else {}
    return Case(
        {"x": normal(rng, b, s, n), "w": normal(rng, n), **bias},
        [f"%y = moe.layer_norm %x, %w{', %b' if biased else ''} eps 1.0e-2 : ({{x}}, {{w}}{', {b}' if biased else ''}) -> {{y}}"],
        {"y": (b, s, n)},
    )


def add(rng, bias):
    b, s, n = sizes(rng, 3)
    return Case(
        {"a": normal(rng, b, s, n), "b": normal(rng, *((n,) if bias else (b, s, n)))},
        ["%y = moe.add %a, %b : ({a}, {b}) -> {y}"],
        {"y": (b, s, n)},
    )


def shared_value(rng):
    """One value with three uses: cotangents add up."""
    b, n = sizes(rng, 2)
    return Case(
        {"x": normal(rng, b, n)},
        [
            "%s = moe.scale %x by 0.5 : ({x}) -> {y}",
            "%a = moe.act silu %s : ({y}) -> {y}",
            "%c = moe.act gelu %s : ({y}) -> {y}",
            "%d = moe.add %a, %c : ({y}, {y}) -> {y}",
            "%y = moe.add %d, %s : ({y}, {y}) -> {y}",
        ],
        {"y": (b, n)},
    )


def with_a_slope(x):
    """One number of x is where each activation and clamp has a slope, so that no draw makes a gradient zero."""
    x.flat[0] = 0.5
    return x


def elementwise(rng, line):
    b, n = sizes(rng, 2)
    return Case({"x": with_a_slope(2 * normal(rng, b, n))}, [f"%y = {line} : ({{x}}) -> {{y}}"], {"y": (b, n)})


def glu(rng, activation, more=""):
    t, f = sizes(rng, 2)
    return Case(
        {"x": with_a_slope(2 * normal(rng, t, 2, f))}, [f"%y = moe.glu {activation} %x{more} : ({{x}}) -> {{y}}"], {"y": (t, f)}
    )


def jitter(rng):
    b, s, d = sizes(rng, 3)
    return Case(
        {"x": normal(rng, b, s, d), "step": integers(rng, 100, 1), "part": integers(rng, 3, 1)},
        ["%y = moe.jitter %x at %step part %part eps 0.4 layer 2 seed 11 : ({x}, {step}, {part}) -> {y}"],
        {"y": (b, s, d)},
        linear=("x",),
    )


def sigmoid_gate(rng):
    t, d = sizes(rng, 2)
    return Case(
        {"x": normal(rng, t, 3, d), "g": normal(rng, t, 3, 1)},
        ["%y = moe.sigmoid_gate %x, %g : ({x}, {g}) -> {y}"],
        {"y": (t, 3, d)},
        linear=("x",),
    )


def rope(rng, interleaved, heads):
    b, s, h = sizes(rng, 3)
    shape = (b, s, h, 6) if heads else (b, s, 6)
    flag = " interleaved" if interleaved else ""
    return Case(
        {"x": normal(rng, *shape)},
        [
            f"%p = moe.positions : tensor<{s}xi32>",
            f"%c, %s = moe.rope_table %p frequencies [1.0, 0.3] times 1.2 : (tensor<{s}xi32>) -> (tensor<{s}x2xf32>, tensor<{s}x2xf32>)",
            f"%y = moe.rope %x, %c, %s{flag} : ({{x}}, tensor<{s}x2xf32>, tensor<{s}x2xf32>) -> {{y}}",
        ],
        {"y": shape},
        linear=("x",),
    )


def whole(rng):
    b, s = sizes(rng, 2)
    return Case({"x": normal(rng, b, s)}, ["%y = moe.whole %x dims [1] : ({x}) -> {y}"], {"y": (b, s)}, linear=("x",))


def attention(rng, kv=2, window=0, bidirectional=False, also=False, bias=False, sinks=False):
    """kv: key/value heads; 0: keys and values without a dimension for heads."""
    b, s, u, d, e, r = 2, 4, 5, 3, 4, 2
    heads, groups = 4, max(kv, 1)
    keys = (b, u, kv) if kv else (b, u)
    mask = np.ones((b, u), np.int32)
    mask[1, 1] = 0
    arguments = {"q": normal(rng, b, s, heads, d), "k": normal(rng, *keys, d), "v": normal(rng, *keys, e)}
    arguments |= {"qpos": np.arange(1, s + 1, dtype=np.int32), "kpos": np.arange(u, dtype=np.int32), "mask": mask}
    text, names = "%y = moe.attention %q, %k, %v at %qpos, %kpos mask %mask", ["q", "k", "v", "qpos", "kpos", "mask"]
    if also:
        arguments |= {"q2": normal(rng, b, s, heads, r), "k2": normal(rng, b, u, r)}
        text, names = text + " also %q2, %k2", [*names, "q2", "k2"]
    if bias:
        arguments["bias"] = normal(rng, heads, s, u)
        text, names = text + " bias %bias", [*names, "bias"]
    if sinks:
        arguments["sinks"] = normal(rng, heads)
        text, names = text + " sinks %sinks", [*names, "sinks"]
    text += f" heads {heads} over {groups} scale 0.6 window {window}{' bidirectional' if bidirectional else ''}"
    return Case(arguments, [f"{text} : ({', '.join(f'{{{n}}}' for n in names)}) -> {{y}}"], {"y": (b, s, heads, e)}, linear=("v",) if not sinks else ())


def relative_bias(rng, bidirectional):
    s, u, h = 6, 9, 2
    flag = " bidirectional" if bidirectional else ""
    return Case(
        {"table": normal(rng, 8, h), "qpos": np.arange(s, dtype=np.int32), "kpos": np.arange(u, dtype=np.int32)},
        [f"%y = moe.relative_bias %table, %qpos, %kpos max_distance 7{flag} : ({{table}}, {{qpos}}, {{kpos}}) -> {{y}}"],
        {"y": (h, s, u)},
        linear=("table",),
    )


def routed(rng, router, k=2, experts=6, between=(), choices=False, apply_input=False):
    """Logits → routing → rows → combine; `between`: ops that make %r2 of %r. Differentiates route, dispatch, combine and what lies between."""
    b, s, d = 2, 5, 3
    R = f"!moe.routing<{b}x{s}, experts = {experts}, k = {k}>"
    rows = f"tensor<{b * s * k}x{d}xf32>"
    attribute = f"#moe.router<k = {k}{router}{', apply = input' if apply_input else ''}>"
    arguments = {"x": normal(rng, b, s, d), "logits": normal(rng, b, s, experts), "w": normal(rng, experts, d, d), "bias": normal(rng, experts, d)}
    if choices:
        arguments["ids"] = np.argsort(rng.random((b, s, experts)))[..., :k].astype(np.int32)
        route = f"%r = moe.route_to {attribute} of %logits to %ids : ({{logits}}, {{ids}}) -> {R}"
    else:
        route = f"%r = moe.route {attribute} of %logits : ({{logits}}) -> {R}"
    last = "%r2" if between else "%r"
    lines = [
        route,
        *(line.replace("[R]", R) for line in between),
        f"%rows = moe.dispatch %x, {last} : ({{x}}, {R}) -> {rows}",
        f"%m = moe.grouped_matmul %rows by {last}, %w contract 1 : ({rows}, {R}, {{w}}) -> {rows}",
        f"%e = moe.grouped_bias %m by {last}, %bias : ({rows}, {R}, {{bias}}) -> {rows}",
        f"%a = moe.act silu %e : ({rows}) -> {rows}",
        f"%y = moe.combine %a, {last} : ({rows}, {R}) -> {{y}}",
    ]
    return Case(arguments, lines, {"y": (b, s, d)})


def limited(rng, renorm, redirected=False):
    capacity = f"#moe.capacity<rule = fixed, value = 2.0 : f64{renorm}>"
    between = [f"%{'r1' if redirected else 'r2'}, %dropped = moe.limit {capacity} of %r : ([R]) -> ([R], tensor<2xf32>)"]
    if redirected:
        between.append("%r2 = moe.redirect %r1 first 3 rest 1 : [R]")
    return routed(rng, ", score = softmax", between=between)


def cross_entropy(rng, smoothing):
    b, s, v = sizes(rng, 3)
    labels = integers(rng, v, b, s)
    labels[0, 0] = -100
    three = f"tensor<{b}x{s}x3xf32>"
    return Case(
        {"x": normal(rng, b, s, v), "max": normal(rng, b, s), "labels": labels},
        [
            f"%st = moe.cross_entropy_stats %x, %max, %labels classes {v} : ({{x}}, {{max}}, {{labels}}) -> {three}",
            f"%sum, %n = moe.cross_entropy %st, %labels classes {v} smoothing {smoothing} : ({three}, {{labels}}) -> ({{y}}, {{y}})",
            "%y = moe.ratio %sum over %n : ({y}, {y}) -> {y}",
        ],
        {"y": (1,)},
        fixed=("max",),
    )


def router_losses(rng):
    b, s, experts, k = 2, 4, 5, 2
    R = f"!moe.routing<{b}x{s}, experts = {experts}, k = {k}>"
    e = f"tensor<{experts}xf32>"
    return Case(
        {"logits": normal(rng, b, s, experts)},
        [
            f"%r = moe.route #moe.router<k = {k}> of %logits : ({{logits}}) -> {R}",
            f"%load = moe.expert_load %r : ({R}) -> {e}",
            f"%probs = moe.expert_probs %logits : ({{logits}}) -> {e}",
            f"%aux = moe.balance %load, %probs tokens {b * s} : ({e}, {e}) -> {{aux}}",
            f"%each = moe.sequence_balance %r, %logits sequences {b} : ({R}, {{logits}}) -> {{each}}",
            f"%z = moe.router_z %logits tokens {b * s} : ({{logits}}) -> {{z}}",
        ],
        {"aux": (1,), "each": (1,), "z": (1,)},
    )


CASES = {
    "embedding": embedding,
    "linear-1": lambda rng: linear(rng, 1),
    "linear-2": lambda rng: linear(rng, 2),
    "head_linear": lambda rng: head_linear(rng, False),
    "head_linear-transposed": lambda rng: head_linear(rng, True),
    "rms_norm-1": lambda rng: rms_norm(rng, 1),
    "rms_norm-2": lambda rng: rms_norm(rng, 2),
    "layer_norm": lambda rng: layer_norm(rng, True),
    "layer_norm-no-bias": lambda rng: layer_norm(rng, False),
    "add": lambda rng: add(rng, False),
    "add-bias": lambda rng: add(rng, True),
    "shared-value": shared_value,
    "scale": lambda rng: elementwise(rng, "moe.scale %x by -0.3"),
    "clamp": lambda rng: elementwise(rng, "moe.clamp %x from -1.0 to 0.8"),
    **{f"act-{a}": (lambda rng, a=a: elementwise(rng, f"moe.act {a} %x")) for a in ("silu", "gelu", "gelu_tanh", "relu")},
    **{f"glu-{a}": (lambda rng, a=a: glu(rng, a)) for a in ("silu", "gelu", "gelu_tanh", "relu")},
    "glu-clamped": lambda rng: glu(rng, "silu", " limit 1.5 alpha 1.702 up_shift 1.0"),
    "jitter": jitter,
    "sigmoid_gate": sigmoid_gate,
    "rope": lambda rng: rope(rng, False, True),
    "rope-interleaved": lambda rng: rope(rng, True, True),
    "rope-no-heads": lambda rng: rope(rng, False, False),
    "whole": whole,
    "attention": attention,
    "attention-window": lambda rng: attention(rng, window=2),
    "attention-one-kv": lambda rng: attention(rng, kv=0),
    "attention-latent": lambda rng: attention(rng, kv=4, also=True),
    "attention-bias": lambda rng: attention(rng, kv=4, bidirectional=True, bias=True),
    "attention-sinks": lambda rng: attention(rng, sinks=True, window=3),
    "attention-all": lambda rng: attention(rng, also=True, bias=True, sinks=True),
    "relative_bias": lambda rng: relative_bias(rng, False),
    "relative_bias-bidirectional": lambda rng: relative_bias(rng, True),
    "route-softmax": lambda rng: routed(rng, ""),
    "route-softmax-renorm": lambda rng: routed(rng, ", renorm = sum, scale = 2.5 : f64"),
    "route-topk-first": lambda rng: routed(rng, ", order = topk_score"),
    "route-sigmoid": lambda rng: routed(rng, ", score = sigmoid, renorm = sum, renorm_epsilon = 1.0e-2 : f64"),
    "route-clamped": lambda rng: routed(rng, ", renorm = sum, renorm_clamp_min = 10.0 : f64"),
    "route-groups": lambda rng: routed(rng, ", score = sigmoid, groups = 3, group_keep = 2, group_score = top2_sum"),
    "route-sqrt_softplus": lambda rng: routed(rng, ", score = sqrt_softplus, renorm = sum"),
    "route-sparsemixer": lambda rng: routed(rng, ", score = sparsemixer, jitter_eps = 0.3 : f64"),
    "route-input": lambda rng: routed(rng, ", score = sigmoid", k=1, apply_input=True),
    "route_to": lambda rng: routed(rng, ", score = sqrt_softplus, renorm = sum", choices=True),
    "limit": lambda rng: limited(rng, ", scale = 0.5 : f64"),
    "limit-before": lambda rng: limited(rng, ", renorm = before"),
    "limit-after": lambda rng: limited(rng, ", renorm = after, renorm_epsilon = 1.0e-3 : f64"),
    "redirect": lambda rng: limited(rng, ", renorm = after, renorm_clamp_min = 1.0e-7 : f64", redirected=True),
    "router_losses": router_losses,
    "cross_entropy": lambda rng: cross_entropy(rng, 0.0),
    "cross_entropy-smoothing": lambda rng: cross_entropy(rng, 0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_derivative(name, tmp_path):
    print(f"MOIRA_TEST_SEED={SEED}")
    rng = np.random.default_rng([SEED, *name.encode()])
    check(CASES[name](rng), tmp_path, rng)
