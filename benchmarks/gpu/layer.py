"""A MoE layer: router, dispatch, SwiGLU experts, combine, in bf16 with f32 sums. Ours as a plan of one program, peers in PyTorch.

Belongs here: the shapes, our program in the `moe` dialect, the peers, and the numbers of one layer. Does not: rounds and tables (measure.py, report.py).

The program takes tokens, router, bias and weights as states, so that a step moves nothing between host and device. Its backward program is what
`moe-opt --moe-vjp` makes of it: gradients of tokens, router, bias and weights for a given cotangent; cotangent and gradients are bf16, as peers' are,
and f32 in a mode of its own.
"""

import re
import statistics
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from moira.runtime import Session
from moira.tools import Failed, run_tool

# tokens, hidden, width of an expert, experts, experts a token
SHAPES = {
    "B1": (8192, 4096, 14336, 8, 2),  # Mixtral-8x7B
    "B2": (16384, 2048, 768, 128, 8),  # Qwen3-30B-A3B
    "B3": (16384, 2048, 1024, 64, 8),  # OLMoE-1B-7B
    "B4": (8192, 7168, 2048, 32, 8),  # DeepSeek-V3, one of eight ranks that share its experts
    "B5": (32768, 4096, 1024, 128, 8),
    "Z": (16384, 1024, 4096, 64, 1),  # Z-code M3's sizes
}
# The part of the dense product's rate that we want.
GOALS = {"B1": (0.95, 0.93), "B2": (0.80, 0.78), "B3": (0.86, 0.84), "B4": (0.94, 0.93), "B5": (0.88, 0.88), "Z": (0.72, 0.66)}
MODES = ("forward", "both")  # both: forward and backward
WIDE = "both-f32"  # with weights' gradients in f32


def flops(shape, mode):
    tokens, hidden, width, _, k = shape
    return 6 * tokens * k * hidden * width * (1 if mode == "forward" else 3)


def program(shape, layers=1):
    """The forward program, everything an argument; with several layers each has tokens and weights of its own, the first one's tokens without a number."""
    tokens, hidden, width, experts, k = shape
    rows, routing = tokens * k, f"!moe.routing<{tokens}, experts = {experts}, k = {k}>"
    x, logits = f"tensor<{tokens}x{hidden}xbf16>", f"tensor<{tokens}x{experts}xf32>"
    types = {"router": f"tensor<{experts}x{hidden}xbf16>", "bias": f"tensor<{experts}xf32>",
             "up": f"tensor<{experts}x2x{width}x{hidden}xbf16>", "down": f"tensor<{experts}x{hidden}x{width}xbf16>"}
    sorted_rows, wide, narrow = (f"tensor<{rows}x{size}xbf16>" for size in (hidden, f"2x{width}", width))
    arguments, body, results = [], [], []
    for i in range(layers):
        value, name = f"%x{i}", numbered("x", i)
        arguments.append(f'{value}: {x} {{moe.name = "{name}"}}')
        arguments += [f'%{name}{i}: {kind} {{moe.name = "{name}{i}"}}' for name, kind in types.items()]
        body += [
            f"%logits{i} = moe.linear {value}, %router{i} contract 1 : ({x}, {types['router']}) -> {logits}",
            f"%biased{i} = moe.add %logits{i}, %bias{i} : ({logits}, {types['bias']}) -> {logits}",
            f"%routing{i} = moe.route <k = {k}, renorm = sum> of %biased{i} : ({logits}) -> {routing}",
            f"%rows{i} = moe.dispatch {value}, %routing{i} : ({x}, {routing}) -> {sorted_rows}",
            f"%wide{i} = moe.grouped_matmul %rows{i} by %routing{i}, %up{i} contract 1 : ({sorted_rows}, {routing}, {types['up']}) -> {wide}",
            f"%act{i} = moe.glu silu %wide{i} : ({wide}) -> {narrow}",
            f"%out{i} = moe.grouped_matmul %act{i} by %routing{i}, %down{i} contract 1 : ({narrow}, {routing}, {types['down']}) -> {sorted_rows}",
            f"%y{i} = moe.combine %out{i}, %routing{i} : ({sorted_rows}, {routing}) -> {x}",
        ]
        results.append(f'{x} {{moe.name = "{numbered("y", i)}"}}')
    lines = "\n".join(f"    {line}" for line in body)
    values = ", ".join(f"%y{i}" for i in range(layers)) + " : " + ", ".join([x] * layers)
    return f'module {{\n  func.func @forward({", ".join(arguments)}) -> ({", ".join(results)}) {{\n{lines}\n    return {values}\n  }}\n}}\n'


def numbered(name, layer):
    return f"{name}{layer}" if layer else name


def with_states(text):
    """The program with its arguments as states."""
    head = re.search(r"func\.func @forward\((.*?)\) -> \(", text)
    arguments = [(value, kind, name.replace(".", "_")) for value, kind, name in re.findall(r'(%\w+): (tensor<[^>]*>) \{moe\.name = "([^"]*)"\}', head.group(1))]
    states = ""
    for _, kind, name in arguments:
        sizes = ", ".join(re.findall(r"(\d+)x", kind))
        states += f'  moe.state @{name} : {kind} from <names = ["{name}"], disk_shape = [{sizes}]>\n'
    params = "".join(f"    {value} = moe.param @{name} : {kind}\n" for value, kind, name in arguments)
    begin = text.index("{\n", text.index("-> (", head.start())) + 2
    return text[: text.index("  func.func")] + states + "  func.func @forward() -> (" + text[head.end() : begin] + params + text[begin:]


def compile_layer(shape, mode, plan, target="sm_90", layers=1):
    """Writes the plan of a mode, and beside it the program that it is made of."""
    source = Path(plan).with_suffix(".mlir")
    source.write_text(program(shape, layers))
    if mode != "forward":
        narrow = [] if mode == WIDE else ["--moe-narrow-gradients", "--moe-narrow-cotangents"]
        checked(run_tool("moe-opt", source, "--moe-vjp", *narrow, "-o", source))
    source.write_text(with_states(source.read_text()))
    checked(run_tool("moe-opt", source, f"--target={target}", "--report=none", "-o", plan))


def checked(finished):
    if finished.code:
        raise Failed(finished)


class Numbers:
    """One layer's tensors on the device: the same for all who compete."""

    def __init__(self, shape, zipf, layers=1, device="cuda"):
        import torch

        tokens, hidden, width, experts, self.k = shape
        draw = torch.Generator(device).manual_seed(1)

        def new(*sizes, scale):
            return torch.randn(*sizes, device=device, dtype=torch.bfloat16, generator=draw) * scale

        # Of deviations with which every value of a layer has a deviation of about one.
        inner, outer = hidden**-0.5, (self.k / width) ** 0.5 / 0.6
        # Loads of experts fall about as 1 / rank.
        ranks = torch.randperm(experts, generator=torch.Generator().manual_seed(2)).to(device) + 1
        bias = -torch.log(ranks.float()) if zipf else torch.zeros(experts, device=device)
        self.tokens = [new(tokens, hidden, scale=1) for _ in range(layers)]
        self.x, self.cotangent = self.tokens[0], new(tokens, hidden, scale=1)
        self.layers = [(new(experts, hidden, scale=inner), bias, new(experts, 2 * width, hidden, scale=inner), new(experts, hidden, width, scale=outer))
                       for _ in range(layers)]

    def write(self, session):
        """Into our session's states."""
        import torch

        wanted = {state.name: state.dtype for state in session.states}
        tensors = {"d_y": self.cotangent.float() if wanted.get("d_y") == np.float32 else self.cotangent}
        for i, layer in enumerate(self.layers):
            tensors[numbered("x", i)] = self.tokens[i]
            tensors.update({f"{name}{i}": tensor for name, tensor in zip(("router", "bias", "up", "down"), layer)})
        if self.x.is_cuda:
            torch.cuda.synchronize()
        for name in wanted:
            session.write(name, tensors[name].data_ptr())


def route(logits, k):
    import torch

    weights, ids = torch.topk(torch.softmax(logits, -1), k, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def make_peer():
    """The layer in PyTorch without a synchronisation of the host: rows sorted by expert, grouped products, and sums by gathering (also backwards)
    instead of by atomic additions. `exact` makes the router's product in f32."""
    import torch

    grouped = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm

    def gathered_sum(rows, row_of, weights=None):
        """Term by term: torch.compile's kernel of a sum over so few takes four times as long as the terms' bytes do."""
        total = 0
        for i in range(row_of.shape[1]):
            term = rows[row_of[:, i]].float()
            total = total + (term if weights is None else term * weights[:, i, None])
        return total.to(rows.dtype)

    class Dispatch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, token_of, row_of):
            ctx.save_for_backward(row_of)
            return x[token_of]

        @staticmethod
        def backward(ctx, dy):
            (row_of,) = ctx.saved_tensors
            return gathered_sum(dy, row_of), None, None

    class Combine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, rows, weights, order, token_of, row_of):
            ctx.save_for_backward(rows, weights, order, token_of, row_of)
            return gathered_sum(rows, row_of, weights)

        @staticmethod
        def backward(ctx, dy):
            rows, weights, order, token_of, row_of = ctx.saved_tensors
            wide = dy[token_of].float()
            d_rows = (wide * weights.flatten()[order].unsqueeze(-1)).to(rows.dtype)
            return d_rows, (wide * rows.float()).sum(-1)[row_of], None, None, None

    def layer(x, router, bias, up, down, k, exact=False):
        product = x.float() @ router.float().T if exact else (x @ router.T).float()
        weights, ids = route(product + bias, k)
        # Eight bits sort in fewest passes.
        experts, order = torch.sort(ids.flatten().to(torch.uint8), stable=True)
        token_of = order // k
        row_of = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=x.device)).view(ids.shape)
        numbers = torch.arange(router.shape[0], device=x.device, dtype=torch.int32)
        ends = torch.searchsorted(experts.to(torch.int32), numbers, right=True).to(torch.int32)
        gate, value = grouped(Dispatch.apply(x, token_of, row_of), up.transpose(1, 2), offs=ends).chunk(2, -1)
        rows = grouped(torch.nn.functional.silu(gate) * value, down.transpose(1, 2), offs=ends)
        return Combine.apply(rows, weights, order, token_of, row_of)

    return layer


def peers(names):
    """{name: function}; functions are compiled at their first call."""
    import torch

    layer = make_peer()
    made = {}
    for name in names:
        if name == "eager":
            made["torch eager"] = layer
        elif name == "compiled":
            made["torch compiled"] = torch.compile(layer, dynamic=False)
        elif name == "tuned":
            torch._inductor.config.max_autotune_gemm_backends = "ATEN"  # or tuning takes minutes
            made["torch tuned"] = torch.compile(layer, dynamic=False, mode="max-autotune-no-cudagraphs")
    return made


@contextmanager
def opened(plan, clock, inputs=None):
    """(function that times our plan in milliseconds, its session)"""
    with Session(plan) as session:
        yield (lambda: median(session, inputs, clock)), session


def median(session, inputs, clock):
    """Milliseconds of a step: median of as many as the clock's budget allows, after one that is not counted."""
    probe = session.steps(inputs, 2)[-1]
    return statistics.median(session.steps(inputs, max(3, min(1000, int(clock.budget / probe)))))


def agreement(session, numbers):
    """How far our output is from the peer's with a router in f32, relative to that, as a note for the table: of the middle token, as a few choose
    other experts where two are nearly as good."""
    import torch

    peer, found = make_peer(), session.forward()
    with torch.no_grad():
        wanted = torch.stack([peer(x, *tensors, numbers.k, exact=True) for x, tensors in zip(numbers.tokens, numbers.layers)]).float()
        got = torch.stack([torch.from_numpy(found[numbered("y", i)]).cuda() for i in range(len(numbers.layers))])
        return {"difference": float(((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())}


@dataclass
class Row:
    shape: str
    mode: str
    load: str
    case = "layer"
    bytes = None

    def __post_init__(self):
        self.sizes = SHAPES[self.shape]
        self.title = f"{self.shape} {self.mode}{' zipf' if self.load == 'zipf' else ''}"
        self.goal = {"ahead": 1} | ({"ratio": GOALS[self.shape][MODES.index(self.mode)]} if self.load == "balanced" and self.mode in MODES else {})
        self.plan, self.flops = f"layer-{self.shape}-{self.mode}.moeplan", flops(self.sizes, self.mode)

    def compile(self, plan):
        compile_layer(self.sizes, self.mode, plan)

    @contextmanager
    def contestants(self, plan, clock, options):
        import torch

        numbers = Numbers(self.sizes, self.load == "zipf")
        leaves = [numbers.x, *numbers.layers[0]]
        with opened(plan, clock) as (time_of, session):
            numbers.write(session)
            # A backward plan's outputs are gigabytes; that its forward part is right is seen where only that is asked for.
            notes = agreement(session, numbers) if self.mode == "forward" else {}
            found = {"moira": time_of}
            for name, peer in peers(options.peers.split(",")).items():
                run = forward_of(peer, leaves, numbers) if self.mode == "forward" else both_of(peer, leaves, numbers)
                found[name] = lambda run=run: clock.median(run)
            yield found, notes
        torch._dynamo.reset()


def forward_of(peer, leaves, numbers):
    import torch

    def run():
        with torch.no_grad():
            peer(*leaves, numbers.k)

    return run


def both_of(peer, leaves, numbers):
    leaves = [tensor.detach().requires_grad_() for tensor in leaves]

    def run():
        for tensor in leaves:
            tensor.grad = None
        peer(*leaves, numbers.k).backward(numbers.cotangent)

    return run


def rows(options):
    return [Row(shape, mode, load) for load in options.loads.split(",") for shape in SHAPES for mode in options.modes.split(",")]
