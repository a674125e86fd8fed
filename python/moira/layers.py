"""The parts of a layer, as data: what a user writes down to describe a model, and how each part becomes operations.

Belongs here: gates, capacities, norms, attention, dense and sparse feed-forward blocks. Does not: stacks, embeddings and heads (models.py).
Every `emit` takes the Program, the prefix of its weights' names, and the layer's number.
"""

from __future__ import annotations

from dataclasses import dataclass

from moira.program import Program, Routing, Tensor, number

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(what)


@dataclass(frozen=True)
class Router:
    """A gate: the fields of `#moe.router` (docs/routing.md says which published gate is which).

    k choices a token; `choice_bias` gives it a weight [E] that counts for the choice only, `logit_bias` one that is added to the logits.
    """

    k: int
    score: str = "softmax"
    order: str = "score_topk"
    groups: int = 1
    group_keep: int = 1
    group_score: str = "max"
    renorm: str = "none"
    renorm_epsilon: float = 0.0
    renorm_clamp_min: float = 0.0
    jitter_eps: float = 0.0
    scale: float = 1.0
    apply: str = "output"
    choice_bias: bool = False
    logit_bias: bool = False

    def __post_init__(self) -> None:
        _require(self.k >= 1, f"a router needs k of at least 1, not {self.k}")

    def text(self) -> str:
        """Inside of #moe.router<...>; moe-opt checks how the fields go together."""
        fields = [f"k = {self.k}"]
        for name, default in (
            ("score", "softmax"), ("order", "score_topk"), ("groups", 1), ("group_keep", 1), ("group_score", "max"), ("renorm", "none"),
            ("renorm_epsilon", 0.0), ("renorm_clamp_min", 0.0), ("jitter_eps", 0.0), ("scale", 1.0), ("apply", "output"),
        ):  # fmt: skip
            value = getattr(self, name)
            if value != default:
                fields.append(f"{name} = {number(value)} : f64" if isinstance(default, float) else f"{name} = {value}")
        return ", ".join(fields)


@dataclass(frozen=True)
class Capacity:
    """How many choices an expert takes, and which: the fields of `#moe.capacity` (docs/routing.md)."""

    rule: str
    value: float
    least: int = 0
    domain: str = "batch"
    policy: str = "position"
    order: str = "token_major"
    renorm: str = "none"
    renorm_epsilon: float = 0.0
    renorm_clamp_min: float = 0.0
    scale: float = 1.0
    seed: int = 0

    def text(self, layer: int) -> str:
        """Inside of #moe.capacity<...>; `layer` makes the draws of each layer others."""
        fields = [f"rule = {self.rule}", f"value = {number(self.value)} : f64"]
        for name, default in (
            ("least", 0), ("domain", "batch"), ("policy", "position"), ("order", "token_major"), ("renorm", "none"),
            ("renorm_epsilon", 0.0), ("renorm_clamp_min", 0.0), ("scale", 1.0), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value != default:
                fields.append(f"{name} = {number(value)} : f64" if isinstance(default, float) else f"{name} = {value}")
        return ", ".join([*fields, *([f"layer = {layer}"] if layer else [])])


def expert_choice(experts: int, per_token: float) -> tuple[Router, Capacity]:
    """Expert choice: every expert takes the tokens that score it highest, so many that a token meets `per_token` experts on average."""
    _require(0 < per_token <= experts, f"{per_token} experts a token cannot be had of {experts}")
    return Router(k=experts), Capacity("fraction", per_token / experts, policy="probs")


@dataclass(frozen=True)
class Norm:
    """kind: "rms", or "layer" (mean and variance), the latter with a bias unless `bias` is False."""

    kind: str = "rms"
    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        _require(self.kind in ("rms", "layer"), f"norm {self.kind!r} is neither 'rms' nor 'layer'")

    def emit(self, p: Program, x: Tensor, name: str, layer: int | None, out: str) -> Tensor:
        width = x.shape[-1:]
        w = p.weight(f"{name}.weight", width, dtype="f32", init="ones", layer=layer)
        if self.kind == "rms":
            return p.rms_norm(x, w, self.eps, out)
        b = p.weight(f"{name}.bias", width, dtype="f32", init="zeros", layer=layer) if self.bias else None
        return p.layer_norm(x, w, b, self.eps, out)


@dataclass(frozen=True)
class Rope:
    """Rotary positions over the first `part` of each head's dimensions."""

    theta: float = 10000.0
    part: float = 1.0

    def frequencies(self, head_dim: int) -> list[float]:
        turned = 2 * int(head_dim * self.part / 2)
        return [self.theta ** (-2 * i / turned) for i in range(turned // 2)]


@dataclass(frozen=True)
class Attention:
    """Softmax attention.

    heads      query heads; kv_heads of keys and values (default: as many), head_dim dimensions each (default: hidden / heads)
    bias       on all four projections
    qk_norm    an RMS norm over each head's dimensions of queries and keys
    rope       rotary positions, or None (then positions come with the embeddings or as relative biases)
    window     0, or how many tokens back a query sees
    scale      of the scores; default 1/sqrt(head_dim)
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    bias: bool = False
    qk_norm: Norm | None = None
    rope: Rope | None = None
    window: int = 0
    scale: float | None = None

    def emit(
        self, p: Program, x: Tensor, name: str, layer: int, *, memory: Tensor | None = None, qpos: Tensor, kpos: Tensor, mask: Tensor,
        bias: Tensor | None = None, causal: bool,
    ) -> Tensor:  # fmt: skip
        """x [B, S, D] normed -> [B, S, D] to add to the residual stream. Keys and values are of `memory`, default x."""
        D, H, Hk = x.shape[-1], self.heads, self.kv_heads or self.heads
        d = self.head_dim or D // H
        _require(self.head_dim is not None or D % H == 0, f"{name}: {H} heads do not divide hidden size {D}; give head_dim")
        _require(H % Hk == 0, f"{name}: {Hk} key heads do not divide {H} query heads")
        memory = memory or x

        def project(of: Tensor, what: str, heads: int) -> Tensor:
            w = p.weight(f"{name}.{what}.weight", (heads, d, D), disk_shape=(heads * d, D), layer=layer)
            norm = self.qk_norm if what != "v" else None
            rope = self.rope if what != "v" else None
            y = p.linear(of, w, out=p.dtype if not (self.bias or norm or rope) else "f32")
            if self.bias:
                b = p.weight(f"{name}.{what}.bias", (heads, d), disk_shape=(heads * d,), dtype="f32", init="zeros", layer=layer)
                y = p.add(y, b, out=p.dtype if not (norm or rope) else "f32")
            if norm:
                y = norm.emit(p, y, f"{name}.{what}_norm", layer, "f32" if rope else p.dtype)
            if rope:
                cos, sin = p.rope_table(qpos if what == "q" else kpos, rope.frequencies(d))
                y = p.rope(y, cos, sin, out=p.dtype)
            return y

        q, k, v = project(x, "q", H), project(memory, "k", Hk), project(memory, "v", Hk)
        mixed = p.attention(q, k, v, qpos, kpos, mask, bias=bias, scale=self.scale, window=self.window, bidirectional=not causal)
        out = p.linear(mixed, p.weight(f"{name}.o.weight", (D, H, d), disk_shape=(D, H * d), layer=layer), contract=2)
        if self.bias:
            out = p.add(out, p.weight(f"{name}.o.bias", (D,), dtype="f32", init="zeros", layer=layer))
        return out


@dataclass(frozen=True)
class MLP:
    """A dense feed-forward block of this width: activation(gate x) · up x if `gated`, else activation(up x); then down."""

    width: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        _require(self.activation in ACTIVATIONS, f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")

    def emit(self, p: Program, x: Tensor, name: str, layer: int) -> Tensor:
        """x [.., D] in the type of products -> [.., D] f32."""
        F, D = self.width, x.shape[-1]
        wide = "f32" if self.bias else p.dtype
        if self.gated:
            names = [f"{name}.gate.weight", f"{name}.up.weight"]
            h = p.linear(x, p.weight(f"{name}.gate_up.weight", (2, F, D), names=names, layer=layer), out=wide)
            if self.bias:
                names = [f"{name}.gate.bias", f"{name}.up.bias"]
                h = p.add(h, p.weight(f"{name}.gate_up.bias", (2, F), names=names, dtype="f32", init="zeros", layer=layer))
            h = p.glu(h, self.activation, out=p.dtype)
        else:
            h = p.linear(x, p.weight(f"{name}.up.weight", (F, D), layer=layer), out=wide)
            if self.bias:
                h = p.add(h, p.weight(f"{name}.up.bias", (F,), dtype="f32", init="zeros", layer=layer))
            h = p.act(h, self.activation, out=p.dtype)
        y = p.linear(h, p.weight(f"{name}.down.weight", (D, F), layer=layer))
        if self.bias:
            y = p.add(y, p.weight(f"{name}.down.bias", (D,), dtype="f32", init="zeros", layer=layer))
        return y


@dataclass(frozen=True)
class Residual:
    """A dense block that every token passes beside its experts (residual MoE, the R of PR-MoE).

    mix: "sum" adds the two, as in the paper; "softmax" weighs them by softmax(Linear(h, 2)), experts first, as DeepSpeed does.
    """

    mlp: MLP
    mix: str = "sum"

    def __post_init__(self) -> None:
        _require(self.mix in ("sum", "softmax"), f"residual mix {self.mix!r} is neither 'sum' nor 'softmax'")


@dataclass(frozen=True)
class MoE:
    """A sparse feed-forward block.

    experts, width    how many experts of which width; their form is that of an MLP (activation, gated, bias)
    router, capacity  the gate, and how many choices an expert takes (None: as many as come)
    shared            an MLP that every token passes as well, its output weighed by sigmoid(Linear(h, 1)) if `shared_gate`
    residual          a dense block mixed with what the experts give
    """

    experts: int
    width: int
    router: Router
    capacity: Capacity | None = None
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    shared: MLP | None = None
    shared_gate: bool = False
    residual: Residual | None = None

    def __post_init__(self) -> None:
        _require(self.router.k <= self.experts, f"a token cannot go to {self.router.k} of {self.experts} experts")
        _require(self.activation in ACTIVATIONS, f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")

    def _route(self, p: Program, x: Tensor, name: str, layer: int) -> Routing:
        E, D = self.experts, x.shape[-1]
        logits = p.linear(x, p.weight(f"{name}.router.weight", (E, D), dtype="f32", layer=layer))
        if self.router.logit_bias:
            logits = p.add(logits, p.weight(f"{name}.router.bias", (E,), dtype="f32", init="zeros", layer=layer))
        bias = p.weight(f"{name}.router.choice_bias", (E,), dtype="f32", init="zeros", layer=layer) if self.router.choice_bias else None
        routing = p.route(logits, self.router.text(), self.router.k, bias)
        if self.capacity:
            step = p.step() if self.capacity.policy == "random" else None
            routing = p.limit(routing, self.capacity.text(layer), step)
        return routing

    def _experts(self, p: Program, x: Tensor, routing: Routing, name: str, layer: int) -> Tensor:
        E, F, D = self.experts, self.width, x.shape[-1]
        share = min(1.0, self.router.k / E)

        def weight(what: str, block: tuple[int, ...], names: list[str], **options) -> Tensor:
            return p.weight(f"{name}.experts.{what}", (E, *block), names=names, per_expert=True, layer=layer, active=share, **options)

        def each(what: str) -> str:
            return f"{name}.experts.{{e}}.{what}"

        rows = p.dispatch(x, routing)
        up, parts = ("gate_up", ["gate", "up"]) if self.gated else ("up", ["up"])
        block = (2, F, D) if self.gated else (F, D)
        h = p.grouped_matmul(rows, routing, weight(f"{up}.weight", block, [each(f"{n}.weight") for n in parts]))
        if self.bias:
            h = p.grouped_bias(h, routing, weight(f"{up}.bias", block[:-1], [each(f"{n}.bias") for n in parts], init="zeros"))
        h = p.glu(h, self.activation, out=p.dtype) if self.gated else p.act(h, self.activation, out=p.dtype)
        h = p.grouped_matmul(h, routing, weight("down.weight", (D, F), [each("down.weight")]))
        if self.bias:
            h = p.grouped_bias(h, routing, weight("down.bias", (D,), [each("down.bias")], init="zeros"))
        return p.combine(h, routing)

    def emit(self, p: Program, x: Tensor, exact: Tensor, name: str, layer: int) -> Tensor:
        """x [.., D] in the type of products, `exact` the same in f32 for the gates -> [.., D] f32."""
        D = x.shape[-1]
        y = self._experts(p, x, self._route(p, exact, name, layer), name, layer)
        if self.residual:
            dense = self.residual.mlp.emit(p, x, f"{name}.residual", layer)
            if self.residual.mix == "softmax":
                # softmax over two is a sigmoid of the difference, so the two rows are read as two weights.
                a, b = (self._coefficient(p, exact, name, row, layer) for row in (0, 1))
                first = p.add(a, p.scale(b, -1.0))
                y, dense = p.sigmoid_gate(y, first), p.sigmoid_gate(dense, p.scale(first, -1.0))
            y = p.add(y, dense)
        if self.shared:
            shared = self.shared.emit(p, x, f"{name}.shared", layer)
            if self.shared_gate:
                shared = p.sigmoid_gate(shared, p.linear(exact, p.weight(f"{name}.shared_gate.weight", (1, D), dtype="f32", layer=layer)))
            y = p.add(y, shared)
        return y

    def _coefficient(self, p: Program, x: Tensor, name: str, row: int, layer: int) -> Tensor:
        """Row `row` of Linear(x, 2), [.., 1]."""
        where = {"dtype": "f32", "layer": layer, "part": (row, 2)}
        w = p.weight(f"{name}.coefficient.weight.{row}", (1, x.shape[-1]), names=[f"{name}.coefficient.weight"], **where)
        b = p.weight(f"{name}.coefficient.bias.{row}", (1,), names=[f"{name}.coefficient.bias"], init="zeros", **where)
        return p.add(p.linear(x, w), b)


@dataclass(frozen=True)
class Layer:
    """Attention and a feed-forward block (MLP or MoE), each behind a norm and added to what came in; a decoder's `cross` attention, which
    reads the encoder, stands between them."""

    attention: Attention
    feed_forward: MLP | MoE
    cross: Attention | None = None
