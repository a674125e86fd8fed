"""Writing a program in the `moe` dialect: one method an operation, shapes checked as the text is made.

A Program is the global program of docs/architecture.md, section 1: global shapes, one device. `text()` is what moe-opt compiles, for any
mesh. Belongs here: values, weights and operations. Does not: layers (layers.py), models (models.py), weights' values (weights.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Shape = tuple[int, ...]


def number(value: float) -> str:
    """A float as MLIR writes it, exact."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return f"{value:.17e}"


@dataclass(frozen=True)
class Tensor:
    """A value of a program. `dtype` is "f32", "bf16" or "i32"."""

    name: str
    shape: Shape
    dtype: str = "f32"

    @property
    def type(self) -> str:
        return f"tensor<{'x'.join([*map(str, self.shape), self.dtype])}>"


@dataclass(frozen=True)
class Routing:
    """Which `k` of `experts` experts each token goes to, and with which weights."""

    name: str
    tokens: Shape
    experts: int
    k: int

    @property
    def type(self) -> str:
        return f"!moe.routing<{'x'.join(map(str, self.tokens))}, experts = {self.experts}, k = {self.k}>"

    @property
    def rows(self) -> int:
        return math.prod(self.tokens) * self.k


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint that fills a weight: `init` says what a fresh one holds, "normal", "ones" or "zeros"."""

    name: str
    shape: Shape
    init: str


@dataclass
class _State:
    name: str
    shape: Shape
    dtype: str
    source: str
    layer: int | None
    active: float  # which share of it one token meets


@dataclass
class Program:
    """Collects weights, inputs, operations and results.

    `dtype` is what products take: "f32", or "bf16" (sums, norms, gates and the residual stream stay f32). Shapes are
    checked; a mistake is a ValueError that names the operation and the shapes.
    """

    dtype: str = "f32"
    states: dict[str, _State] = field(default_factory=dict)
    stored: dict[str, StoredTensor] = field(default_factory=dict)
    _arguments: list[str] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)
    _results: list[tuple[str, Tensor]] = field(default_factory=list)
    _dropped: list[Tensor] = field(default_factory=list)
    _place: str = "model"
    _names: int = 0
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _params: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in ("f32", "bf16"):
            raise ValueError(f"dtype {self.dtype!r} is neither 'f32' nor 'bf16'")

    # --- the frame ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def at(self, place: str):
        """Operations made inside belong to `place` ("layers.3.attention"): errors, profiles and routing files say so."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def input(self, name: str, shape: Shape, *, least: int | None = None, most: int | None = None, fill: float | None = None) -> Tensor:
        """An i32 argument that inputs files hold under `name`; the same name again is the same argument. Values outside of
        [least, most] are refused; with `fill` a file may lack the tensor and every element is that."""
        if name in self._inputs:
            return self._inputs[name]
        value = Tensor(f"%{name}", tuple(shape), "i32")
        attributes = [f'moe.name = "{name}"']
        if least is not None and most is not None:
            attributes.append(f"moe.range = array<i64: {least}, {most}>")
        if fill is not None:
            attributes += [f"moe.fill = {number(fill)} : f64", "moe.optional"]
        self._arguments.append(f"{value.name}: {value.type} {{{', '.join(attributes)}}}")
        self._inputs[name] = value
        return value

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        per_expert: bool = False,
        disk_shape: Sequence[int] | None = None,
        part: tuple[int, int] | None = None,
        dtype: str | None = None,
        init: str = "normal",
        layer: int | None = None,
        active: float = 1.0,
    ) -> Tensor:
        """The value of the weight `name`. A name that is there already is the same weight.

        shape      [experts (if per_expert), names (if more than one), block...]
        names      checkpoint tensors that fill it, "{e}" stands for the expert's number; default: `name`
        disk_shape of each of them; default: the block
        part       (first, size): the block is a part of a tensor that has `size` along its first dimension, and begins at `first`
        active     which share of it one token meets
        """
        if name not in self.states:
            names = tuple(names or (name,))
            lead = int(per_expert) + int(len(names) > 1)
            block = tuple(shape[lead:])
            disk = tuple(disk_shape or ((part[1], *block[1:]) if part else block))
            text = "names = [" + ", ".join(f'"{n}"' for n in names) + "]"
            text += ", per_expert = true" if per_expert else ""
            text += f", disk_shape = {list(disk)}"
            text += f", slice = [0, {part[0]}, {part[1]}]" if part else ""
            for expert in range(shape[0]) if per_expert else (0,):
                for pattern in names:
                    tensor = StoredTensor(pattern.replace("{e}", str(expert)), disk, init)
                    if self.stored.setdefault(tensor.name, tensor) != tensor:
                        raise ValueError(f"the checkpoint tensor {tensor.name} has two shapes or uses: {self.stored[tensor.name]} and {tensor}")
            self.states[name] = _State(name, tuple(shape), dtype or self.dtype, text, layer, active=active)
        state = self.states[name]
        if state.shape != tuple(shape):
            raise ValueError(f"weight {name} is {list(state.shape)}, asked for as {list(shape)}")
        if name not in self._params:
            value = Tensor(self._fresh(), state.shape, state.dtype)
            self._lines.append(f'{value.name} = moe.param @"{name}" : {value.type} loc("{self._place}")')
            self._params[name] = value
        return self._params[name]

    def result(self, name: str, value: Tensor) -> None:
        """An output of the program, under this name in outputs files."""
        self._results.append((name, value))

    def parameters(self) -> int:
        """Parameters of all weights."""
        return sum(math.prod(s.shape) for s in self.states.values())

    def active_parameters(self) -> int:
        """Parameters that one token meets."""
        return sum(round(math.prod(s.shape) * s.active) for s in self.states.values())

    def text(self) -> str:
        """The program as moe-opt reads it, at phase import."""
        results = list(self._results)
        lines = list(self._lines)
        if self._dropped:
            total = self._dropped[0]
            for i, more in enumerate(self._dropped[1:]):
                name = f"%dropped_{i}"
                lines.append(f"{name} = moe.add {total.name}, {more.name} : ({total.type}, {more.type}) -> {total.type}")
                total = Tensor(name, total.shape)
            results.append(("dropped_choices", total))
        batch = seq = 1
        if tokens := self._inputs.get("input_ids"):
            batch, seq = tokens.shape[:2]
        info = (
            f'plan.info = #plan.info<model_class = "custom", task = "forward", dtype = {self.dtype}, batch = {batch}, seq = {seq}, '
            f"parameters = {self.parameters()}, active_parameters = {self.active_parameters()}, "
            f"tensors_expected = {len(self.stored)}, tensors_found = 0>"
        )
        out = [f"module attributes {{{info}}} {{"]
        for s in self.states.values():
            layer = "" if s.layer is None else f" layer {s.layer}"
            kind = Tensor("", s.shape, s.dtype).type
            out.append(f'  moe.state @"{s.name}" : {kind} from <{s.source}>{layer}')
        types = ", ".join(f'{v.type} {{moe.name = "{n}"}}' for n, v in results)
        out.append(f"  func.func @forward({', '.join(self._arguments)}) -> ({types}) {{")
        out += ["    " + line for line in lines]
        out.append(f"    return {', '.join(v.name for _, v in results)} : {', '.join(v.type for _, v in results)}")
        return "\n".join([*out, "  }", "}"]) + "\n"

    # --- operations -----------------------------------------------------------------------------------------------------------

    def _fresh(self) -> str:
        self._names += 1
        return f"%v{self._names}"

    def _emit(self, text: str, operands: Sequence[Tensor | Routing], shape: Sequence[int], dtype: str = "f32") -> Tensor:
        """A line `%v = moe.<text> : (operand types) -> result type`."""
        value = Tensor(self._fresh(), tuple(shape), dtype)
        types = ", ".join(o.type for o in operands)
        self._lines.append(f'{value.name} = moe.{text} : ({types}) -> {value.type} loc("{self._place}")')
        return value

    def _check(self, fits: bool, op: str, *operands: Tensor | Routing) -> None:
        if not fits:
            shapes = ", ".join(o.type for o in operands)
            raise ValueError(f"{op} at {self._place}: operands {shapes} do not fit each other")

    def embedding(self, ids: Tensor, table: Tensor) -> Tensor:
        """ids [t..], table [v, D] -> [t.., D], f32."""
        self._check(len(table.shape) == 2 and ids.dtype == "i32", "embedding", ids, table)
        return self._emit(f"embedding {ids.name}, {table.name}", (ids, table), (*ids.shape, table.shape[1]))

    def linear(self, x: Tensor, w: Tensor, contract: int = 1, out: str = "f32") -> Tensor:
        """x [t.., K..], w [N.., K..] -> [t.., N..]: the last `contract` dimensions are summed over."""
        self._check(x.shape[-contract:] == w.shape[-contract:] and x.dtype == w.dtype, f"linear over {contract}", x, w)
        shape = (*x.shape[:-contract], *w.shape[:-contract])
        return self._emit(f"linear {x.name}, {w.name} contract {contract}", (x, w), shape, out)

    def add(self, a: Tensor, b: Tensor, out: str | None = None) -> Tensor:
        """a [.., N..] + b [.., N..] or b [N..]."""
        self._check(a.shape[len(a.shape) - len(b.shape) :] == b.shape and a.dtype == b.dtype, "add", a, b)
        return self._emit(f"add {a.name}, {b.name}", (a, b), a.shape, out or a.dtype)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        """x times a constant."""
        return self._emit(f"scale {x.name} by {number(factor)}", (x,), x.shape, x.dtype)

    def clamp(self, x: Tensor, least: float, most: float) -> Tensor:
        return self._emit(f"clamp {x.name} from {number(least)} to {number(most)}", (x,), x.shape, x.dtype)

    def act(self, x: Tensor, activation: str, out: str | None = None) -> Tensor:
        """activation: "silu", "gelu", "gelu_tanh" or "relu"."""
        return self._emit(f"act {activation} {x.name}", (x,), x.shape, out or x.dtype)

    def glu(self, x: Tensor, activation: str, out: str | None = None) -> Tensor:
        """x [.., 2, F] -> [.., F]: activation(x[.., 0, :]) times x[.., 1, :]."""
        self._check(len(x.shape) >= 2 and x.shape[-2] == 2, "glu", x)
        return self._emit(f"glu {activation} {x.name}", (x,), (*x.shape[:-2], x.shape[-1]), out or x.dtype)

    def sigmoid_gate(self, x: Tensor, g: Tensor) -> Tensor:
        """x [t.., D], g [t.., 1] -> x times sigmoid(g)."""
        self._check(g.shape == (*x.shape[:-1], 1), "sigmoid_gate", x, g)
        return self._emit(f"sigmoid_gate {x.name}, {g.name}", (x, g), x.shape, x.dtype)

    def rms_norm(self, x: Tensor, w: Tensor, eps: float, out: str = "f32") -> Tensor:
        """x [.., N..], w [N..]."""
        self._check(x.shape[len(x.shape) - len(w.shape) :] == w.shape, "rms_norm", x, w)
        return self._emit(f"rms_norm {x.name}, {w.name} eps {number(eps)}", (x, w), x.shape, out)

    def layer_norm(self, x: Tensor, w: Tensor, b: Tensor | None, eps: float, out: str = "f32") -> Tensor:
        """x [.., N..], w [N..], b [N..]."""
        self._check(x.shape[len(x.shape) - len(w.shape) :] == w.shape and (b is None or b.shape == w.shape), "layer_norm", x, w)
        operands = (x, w) if b is None else (x, w, b)
        return self._emit(f"layer_norm {', '.join(o.name for o in operands)} eps {number(eps)}", operands, x.shape, out)

    def positions(self, count: int) -> Tensor:
        """[count] i32: 0, 1, 2, ..."""
        value = Tensor(self._fresh(), (count,), "i32")
        self._lines.append(f'{value.name} = moe.positions : {value.type} loc("{self._place}")')
        return value

    def token_positions(self, ids: Tensor, pad: int) -> Tensor:
        """ids [B, S] -> [B, S] i32: pad + the number of tokens up to this one that are not `pad`; `pad` where the token is."""
        return self._emit(f"token_positions {ids.name} pad {pad}", (ids,), ids.shape, "i32")

    def sinusoid(self, pos: Tensor, width: int, offset: int = 0, zero: int = -1) -> Tensor:
        """pos [t..] -> [t.., width]: sines, then cosines, of pos + offset times falling frequencies; a row of zeros where that is `zero`."""
        return self._emit(f"sinusoid {pos.name} offset {offset} zero {zero}", (pos,), (*pos.shape, width))

    def rope_table(self, pos: Tensor, frequencies: Sequence[float], factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """pos [S] -> cos, sin [S, r] of pos times each of the r frequencies."""
        shape = (*pos.shape, len(frequencies))
        cos, sin = Tensor(self._fresh(), shape), Tensor(self._fresh(), shape)
        listed = ", ".join(map(number, frequencies))
        self._lines.append(
            f"{cos.name}, {sin.name} = moe.rope_table {pos.name} frequencies [{listed}] times {number(factor)} : "
            f'({pos.type}) -> ({cos.type}, {sin.type}) loc("{self._place}")'
        )
        return cos, sin

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, out: str | None = None) -> Tensor:
        """x [B, S, H, d], cos and sin [S, r]: rotates the pairs (i, i + r)."""
        self._check(x.shape[1] == cos.shape[0] and 2 * cos.shape[1] <= x.shape[-1], "rope", x, cos)
        return self._emit(f"rope {x.name}, {cos.name}, {sin.name}", (x, cos, sin), x.shape, out or x.dtype)

    def relative_bias(self, table: Tensor, qpos: Tensor, kpos: Tensor, max_distance: int, bidirectional: bool) -> Tensor:
        """table [N, H], qpos [Sq], kpos [Sk] -> [H, Sq, Sk]: T5's buckets of distances."""
        text = f"relative_bias {table.name}, {qpos.name}, {kpos.name} max_distance {max_distance}" + " bidirectional" * bidirectional
        return self._emit(text, (table, qpos, kpos), (table.shape[1], *qpos.shape, *kpos.shape))

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, qpos: Tensor, kpos: Tensor, mask: Tensor,
        *, bias: Tensor | None = None, scale: float | None = None, window: int = 0, bidirectional: bool = False,
    ) -> Tensor:  # fmt: skip
        """q [B, Sq, H, d], k and v [B, Sk, Hk, d], qpos [Sq], kpos [Sk], mask [B, Sk] i32 -> [B, Sq, H, d].

        scale: default 1/sqrt(d). window: 0, or how many keys back a query sees. bias [H, Sq, Sk] is added to the scores.
        """
        fits = q.shape[-1] == k.shape[-1] and k.shape == v.shape and q.shape[2] % k.shape[2] == 0 and mask.shape == k.shape[:2]
        self._check(fits, "attention", q, k, v, mask)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        operands = [q, k, v, qpos, kpos, mask] + ([bias] if bias else [])
        text = f"attention {q.name}, {k.name}, {v.name} at {qpos.name}, {kpos.name} mask {mask.name}" + (f" bias {bias.name}" if bias else "")
        text += f" heads {q.shape[2]} over {k.shape[2]} scale {number(scale)} window {window}" + " bidirectional" * bidirectional
        return self._emit(text, operands, (*q.shape[:-1], v.shape[-1]), q.dtype)

    def route(self, logits: Tensor, router: str, k: int, bias: Tensor | None = None) -> Routing:
        """logits [t.., E] f32 -> the routing that `#moe.router<router>` makes; bias [E] counts for the choice only."""
        self._check(logits.dtype == "f32" and k <= logits.shape[-1], f"route to {k} experts", logits)
        routing = Routing(self._fresh(), logits.shape[:-1], logits.shape[-1], k)
        with_bias, types = (f" bias {bias.name}", f"{logits.type}, {bias.type}") if bias else ("", logits.type)
        self._lines.append(f'{routing.name} = moe.route <{router}> of {logits.name}{with_bias} : ({types}) -> {routing.type} loc("{self._place}")')
        return routing

    def limit(self, routing: Routing, capacity: str, step: Tensor | None = None) -> Routing:
        """The routing without the choices that `#moe.capacity<capacity>` drops; what is dropped is counted in the output `dropped_choices`."""
        kept = Routing(self._fresh(), routing.tokens, routing.experts, routing.k)
        dropped = Tensor(self._fresh(), (2,))
        with_step, types = (f" step {step.name}", f"{routing.type}, {step.type}") if step else ("", routing.type)
        self._lines.append(
            f"{kept.name}, {dropped.name} = moe.limit <{capacity}> of {routing.name}{with_step} : ({types}) -> "
            f'({kept.type}, {dropped.type}) loc("{self._place}")'
        )
        self._dropped.append(dropped)
        return kept

    def dispatch(self, x: Tensor, routing: Routing) -> Tensor:
        """x [t.., D] -> rows [T·k, D], one a token and choice, sorted by expert."""
        self._check(x.shape[:-1] == routing.tokens, "dispatch", x, routing)
        return self._emit(f"dispatch {x.name}, {routing.name}", (x, routing), (routing.rows, x.shape[-1]), x.dtype)

    def grouped_matmul(self, rows: Tensor, routing: Routing, w: Tensor) -> Tensor:
        """rows [R, K], w [E, N.., K] -> [R, N..]: each row times its expert's matrix."""
        self._check(w.shape[0] == routing.experts and rows.shape[-1] == w.shape[-1], "grouped_matmul", rows, routing, w)
        text = f"grouped_matmul {rows.name} by {routing.name}, {w.name} contract 1"
        return self._emit(text, (rows, routing, w), (rows.shape[0], *w.shape[1:-1]), rows.dtype)

    def grouped_bias(self, rows: Tensor, routing: Routing, b: Tensor) -> Tensor:
        """rows [R, N..], b [E, N..]: each row plus its expert's bias."""
        self._check(b.shape == (routing.experts, *rows.shape[1:]) and b.dtype == rows.dtype, "grouped_bias", rows, routing, b)
        return self._emit(f"grouped_bias {rows.name} by {routing.name}, {b.name}", (rows, routing, b), rows.shape, rows.dtype)

    def combine(self, rows: Tensor, routing: Routing) -> Tensor:
        """rows [T·k, D] -> [t.., D], f32: each token's rows times their weights, added up."""
        self._check(rows.shape[0] == routing.rows, "combine", rows, routing)
        return self._emit(f"combine {rows.name}, {routing.name}", (rows, routing), (*routing.tokens, rows.shape[-1]))

    def step(self) -> Tensor:
        """[1] i32: the number of the batch, which random draws depend on; 0 where the inputs do not give it."""
        return self.input("step", (1,), fill=0.0)
