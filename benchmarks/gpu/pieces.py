"""Single operations as plans of their own beside PyTorch's best for the same: attention (cuDNN), AdamW (fused), and what the compiler generates
(torch.compile). Belongs here: programs, peers, operations and bytes of pieces. Does not: layers (layer.py), rounds and tables (measure.py, report.py).
"""

import functools
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import layer
import numpy as np
from moira.tools import run_tool


@dataclass(frozen=True)
class Piece:
    """`tensors` {name: (shape, dtype)} are states, but for those in `inputs`. `body` are the operations that give %y; an update has none. `work` is
    (operations, bytes), one of them None; `peer(tensors, mode, fast)` gives a function that makes one step, which need not be compiled if not `fast`."""

    tensors: dict
    body: str
    result: str
    work: tuple
    peer: Callable
    mode: str = "forward"
    inputs: dict = field(default_factory=dict)
    options: tuple = ()  # moe-opt's


def kind(shape, dtype):
    return f"tensor<{'x'.join(map(str, (*shape, dtype)))}>"


def attention(sequence, mode, fastest=False, heads=64, kv=8, head=128, batch=1):
    q, k = kind((batch, sequence, heads, head), "bf16"), kind((batch, sequence, kv, head), "bf16")
    places, mask = kind((sequence,), "i32"), kind((batch, sequence), "i32")
    body = (f"%places = moe.positions : {places}\n    %mask = moe.full 1.0 : {mask}\n"
            f"    %y = moe.attention %q, %k, %v at %places, %places mask %mask heads {heads} over {kv} scale {head**-0.5:e} window 0 "
            f": ({q}, {k}, {k}, {places}, {places}, {mask}) -> {q}")
    forward = 2 * batch * sequence**2 * heads * head  # half of the scores are masked
    return Piece({"q": ((batch, sequence, heads, head), "bf16"), "k": ((batch, sequence, kv, head), "bf16"), "v": ((batch, sequence, kv, head), "bf16")},
                 body, q, (forward * (3.5 if mode == "both" else 1), None), functools.partial(attention_peer, reproducible=mode == "both" and not fastest),
                 mode, options=("--attention-grad=fastest",) if fastest else ())


def attention_peer(tensors, mode, fast=True, reproducible=False):
    """PyTorch's attention by cuDNN, whose gradient has other last bits in every run. `reproducible`: what PyTorch offers where these must be the same,
    its FlashAttention under use_deterministic_algorithms, as it has no such gradient by cuDNN."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (tensors[name].transpose(1, 2) for name in "qkv")
    backend = SDPBackend.MATH if not q.is_cuda else SDPBackend.FLASH_ATTENTION if reproducible else SDPBackend.CUDNN_ATTENTION

    def forward(*qkv):
        with sdpa_kernel([backend]):
            return torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)

    if mode == "forward":

        def run():
            with torch.no_grad():
                return forward(q, k, v).transpose(1, 2)

        return run
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    cotangent = tensors["d_y"].to(q.dtype).transpose(1, 2)

    def both():
        torch.use_deterministic_algorithms(reproducible)
        y = forward(*leaves)
        torch.autograd.grad(y, leaves, cotangent)
        torch.use_deterministic_algorithms(False)
        return y.transpose(1, 2)

    torch.utils.deterministic.fill_uninitialized_memory = False  # which takes time, and helps only who reads what nobody wrote
    return both


def compiled(function):
    def peer(tensors, mode, fast=True):
        import torch

        call = torch.compile(function, dynamic=False) if fast else function

        def run():
            with torch.no_grad():
                return call(**tensors)

        return run

    return peer


def adamw(count):
    shape = (count // 4096, 4096)
    t, one, step = kind(shape, "f32"), kind((1,), "f32"), kind((1,), "i32")
    body = (f"moe.adamw %w, %m, %v by %g rate %lr step %step betas 0.9, 0.999 eps 1.0e-8 weight_decay 0.01 : ({t}, {t}, {t}, {t}, {one}, {step}) -> ()")
    inputs = {"lr": np.full(1, 1e-3, np.float32), "step": np.ones(1, np.int32)}
    return Piece({name: (shape, "f32") for name in "wmvg"}, body, "", (None, 28 * count), adamw_peer, inputs=inputs)


def adamw_peer(tensors, mode, fast=True):
    import torch

    weight = torch.nn.Parameter(tensors["w"].clone())
    weight.grad = tensors["g"]
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01, fused=True)

    def run():
        optimizer.step()
        return weight

    return run


def rms_norm(rows, width):
    x, w = kind((rows, width), "f32"), kind((width,), "f32")

    def function(x, w):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w

    return Piece({"x": ((rows, width), "f32"), "w": ((width,), "f32")}, f"%y = moe.rms_norm %x, %w eps 1.0e-6 : ({x}, {w}) -> {x}", x,
                 (None, 8 * rows * width), compiled(function))


def silu_mul(rows, width):
    x, y = kind((rows, 2, width), "f32"), kind((rows, width), "f32")

    def function(x):
        return x[:, 0] * x[:, 0].sigmoid() * x[:, 1]

    return Piece({"x": ((rows, 2, width), "f32")}, f"%y = moe.glu silu %x : ({x}) -> {y}", y, (None, 12 * rows * width), compiled(function))


def rope(sequence, heads, head):
    x, half = kind((1, sequence, heads, head), "bf16"), kind((sequence, head // 2), "f32")

    def function(x, cos, sin):
        import torch

        a, b = x.float().chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat([a * c - b * s, b * c + a * s], -1).bfloat16()

    return Piece({"x": ((1, sequence, heads, head), "bf16"), "cos": ((sequence, head // 2), "f32"), "sin": ((sequence, head // 2), "f32")},
                 f"%y = moe.rope %x, %cos, %sin : ({x}, {half}, {half}) -> {x}", x, (None, 4 * sequence * heads * head), compiled(function))


def cast(rows, width):
    x, y = kind((rows, width), "f32"), kind((rows, width), "bf16")

    def function(x):
        import torch

        return (x * 0.5).to(torch.bfloat16)

    return Piece({"x": ((rows, width), "f32")}, f"%y = moe.scale %x by 0.5 : ({x}) -> {y}", y, (None, 6 * rows * width), compiled(function))


PIECES = {
    **{f"attention-{s}-{mode}": attention(s, mode) for s in (2048, 4096, 8192) for mode in layer.MODES},
    **{f"attention-{s}-both-fastest": attention(s, "both", fastest=True) for s in (2048, 4096, 8192)},
    "adamw-1e9": adamw(10**9),
    "rms_norm": rms_norm(8192, 4096),
    "silu-mul": silu_mul(8192, 4096),
    "rope": rope(16384, 64, 128),
    "cast": cast(16384, 8192),
}


def program(piece):
    """The piece as a program; one that is updated is `train`, which alone may be."""
    arguments = ", ".join(f'%{name}: {kind(*value)} {{moe.name = "{name}"}}' for name, value in piece.tensors.items())
    if piece.result:
        return (f'module {{\n  func.func @forward({arguments}) -> ({piece.result} {{moe.name = "y"}}) {{\n    {piece.body}\n'
                f"    return %y : {piece.result}\n  }}\n}}\n")
    states = layer.with_states(f"module {{\n  func.func @forward({arguments}) -> () {{\n    {piece.body}\n    return\n  }}\n}}\n")
    given = ", ".join(f'%{name}: {kind(value.shape, "f32" if value.dtype == np.float32 else "i32")} {{moe.name = "{name}"}}' for name, value in piece.inputs.items())
    first = next(iter(piece.inputs))
    one = kind((1,), "f32")
    return states.replace("@forward() -> ()", f'@train({given}) -> ({one} {{moe.name = "rate"}})').replace("    return\n", f"    return %{first} : {one}\n")


def compile_piece(piece, plan, target="sm_90"):
    source = Path(plan).with_suffix(".mlir")
    source.write_text(program(piece))
    if piece.mode == "both":
        # Cotangent and gradients in the type of the result and the operands, as PyTorch has them.
        layer.checked(run_tool("moe-opt", source, "--moe-vjp", "--moe-narrow-gradients", "--moe-narrow-cotangents", "-o", source))
    if piece.result:
        source.write_text(layer.with_states(source.read_text()))
    layer.checked(run_tool("moe-opt", source, f"--target={target}", "--report=none", *piece.options, "-o", plan))


def draw(session, device):
    """Random tensors for all states, by name: also what peers take."""
    import torch

    generator, kinds = torch.Generator(device).manual_seed(4), {np.dtype(np.uint16): torch.bfloat16, np.dtype(np.float32): torch.float32}
    return {state.name: torch.randn(state.shape, device=device, generator=generator).to(kinds[state.dtype]) for state in session.states}


@dataclass
class Row:
    shape: str
    case = "pieces"

    def __post_init__(self):
        self.title, self.plan, self.piece = self.shape, f"piece-{self.shape}.moeplan", PIECES[self.shape]
        self.flops, self.bytes = self.piece.work
        self.goal = {"ahead": 0.97} if self.flops else {"ratio": 0.95 if self.piece.result else 0.97}

    def compile(self, plan):
        compile_piece(self.piece, plan)

    @contextmanager
    def contestants(self, plan, clock, options):
        import torch

        with layer.opened(plan, clock, self.piece.inputs) as (time_of, session):
            tensors = draw(session, "cuda")
            for name in "mv" if not self.piece.result else "":
                tensors[name].zero_()
            torch.cuda.synchronize()
            for name, tensor in tensors.items():
                session.write(name, tensor.data_ptr())
            run = self.piece.peer(tensors, self.piece.mode)
            notes = {}
            if self.piece.result and self.piece.mode == "forward":
                theirs = run().float()
                ours = torch.from_numpy(session.forward(self.piece.inputs)["y"]).cuda()
                notes["difference"] = float((ours - theirs).norm() / theirs.norm())
            yield {"moira": time_of, "torch": lambda: clock.median(run)}, notes
        torch._dynamo.reset()


def rows(_):
    return [Row(name) for name in PIECES]
