"""A MoE layer for few tokens, as in decoding: layers one behind the other, so that no weight is in the L2 cache from the step before, ours and
the peers' in CUDA graphs. Each layer has tokens of its own: numbers that pass through several layers without norms explode.

Belongs here: rows and bytes. Does not: the layer itself (layer.py).
"""

from contextlib import contextmanager
from dataclasses import dataclass

import layer

# hidden, width, experts, experts a token, layers one behind the other
MODELS = {"Qwen3": (2048, 768, 128, 8, 8), "Mixtral": (4096, 14336, 8, 2, 3)}
TOKENS = (1, 8, 32, 128)
# The part of the copy's rate that we want, from so many tokens on.
GOALS = {"Qwen3": {1: 0.50, 32: 0.92}, "Mixtral": {1: 0.50, 8: 0.95}}


@dataclass
class Row:
    model: str
    tokens: int
    case = "decode"
    flops = None

    def __post_init__(self):
        hidden, width, experts, k, self.layers = MODELS[self.model]
        self.shape, self.sizes = f"{self.model}-{self.tokens}", (self.tokens, hidden, width, experts, k)
        self.title, self.plan = f"{self.model}, {self.tokens} tokens", f"decode-{self.model}-{self.tokens}.moeplan"
        self.goal = {"ahead": 1, "ratio": max(ratio for least, ratio in GOALS[self.model].items() if self.tokens >= least)}
        # Weights of the router, and of the experts that choices at random are expected to touch.
        touched = experts * (1 - (1 - k / experts) ** self.tokens)
        self.bytes = hidden * experts * 2 + touched * 3 * width * hidden * 2

    def compile(self, plan):
        layer.compile_layer(self.sizes, "forward", plan, layers=self.layers)

    @contextmanager
    def contestants(self, plan, clock, options):
        import torch

        numbers = layer.Numbers(self.sizes, zipf=False, layers=self.layers)
        per_layer = 1 / self.layers
        with layer.opened(plan, clock) as (time_of, session):
            numbers.write(session)
            found = {"moira": lambda: time_of() * per_layer}
            for name, peer in layer.peers(options.peers.split(",")).items():
                found[name] = lambda run=graph_of(peer, numbers): clock.median(run) * per_layer
            notes = layer.agreement(session, numbers)
            with torch.no_grad():
                yield found, notes


def graph_of(peer, numbers):
    """Replays the layers by a peer from a CUDA graph."""
    import torch

    def run():
        return [peer(x, *tensors, numbers.k) for x, tensors in zip(numbers.tokens, numbers.layers)]

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay


def rows(_):
    return [Row(model, tokens) for model in MODELS for tokens in TOKENS]
