"""Greedy generation by a whole model beside transformers': milliseconds of a decode step for 1, 8 and 32 rows. Random weights, the same for all.

Ours is timed by the host's clock, the next tokens fetched after every step; the peers run freely and wait once at the end. Their cache is static, so
that torch.compile can put a step into a CUDA graph. Belongs here: rows and peers of generation. Does not: models (model.py), rounds and tables.
"""

import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import model
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from decode import step_bytes  # noqa: E402

PROMPT, NEW = 128, 64
BATCHES = (1, 8, 32)


@dataclass
class Row:
    batch: int
    config: dict
    device: str = "cuda"
    case = "generate"
    flops, goal = None, {"ahead": 3}

    def __post_init__(self):
        self.shape = f"OLMoE-{self.batch}"
        self.title, self.plan = f"OLMoE, {self.batch} row{'s' if self.batch > 1 else ''}", f"generate-{self.shape}.moeplan"
        self.bytes = sum(step_bytes(self.config, self.batch, PROMPT + NEW // 2))

    def compile(self, plan, target="sm_90"):
        model.compile_model(self.config, plan, "--task=generate", f"--batch={self.batch}", f"--seq={PROMPT}", f"--max-seq={PROMPT + NEW}", "--dtype=bf16",
                            f"--target={target}")

    @contextmanager
    def contestants(self, plan, clock, options):
        import torch

        peer = model.make_model(self.config, self.device)
        prompts = torch.randint(0, self.config["vocab_size"], (self.batch, PROMPT), device=self.device, generator=torch.Generator(self.device).manual_seed(5))
        ids = prompts.cpu().numpy()
        with model.opened(plan, peer, options) as session:
            found, notes = {}, {}
            if session:
                found["moira"] = lambda: statistics.median(session.generate(ids, NEW)[1][1:])
                # Which tokens come later depends on the first that two logits nearly share, so only the first ones are compared.
                theirs = Peer(peer, prompts, "grouped_mm", compiled=False).tokens(2)
                notes["difference"] = float(np.mean(session.generate(ids, 2)[0] != theirs.cpu().numpy()))
            made = {name: Peer(peer, prompts, experts, name != "eager") for name, experts in self.peers(options.peers.split(",")).items()}
            for name, loop in made.items():
                found[f"transformers {name}"] = loop.milliseconds
            yield found, notes
        torch._dynamo.reset()

    def peers(self, names):
        """{peer: how its experts multiply}. transformers decodes with batched_mm, which copies the weights of every choice: for many rows that is
        more than all experts."""
        batched = {"compiled": "batched_mm"} if self.batch < 32 else {}
        grouped = {"grouped": "grouped_mm"} if self.batch > 1 else {}
        wanted = {"eager": "grouped_mm" if grouped else "batched_mm", **batched, **grouped}
        return {name: experts for name, experts in wanted.items() if name in names}


class Peer:
    """transformers' model with a static cache, in a loop of our own that does less than its generate(). `experts` multiply so in a step."""

    def __init__(self, model, prompts, experts, compiled):
        import torch
        from transformers import StaticCache

        self.model, self.prompts, self.experts = model, prompts, experts
        self.cache = StaticCache(config=model.config, max_cache_len=PROMPT + NEW)
        self.step = torch.compile(self.next, mode="reduce-overhead", fullgraph=True, dynamic=False) if compiled else self.next

    def next(self, ids):
        return self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    def tokens(self, count, after_prompts=lambda: None):
        """[rows, count]; the prompts are not compiled, and their experts multiply by groups, as in transformers."""
        import torch

        with torch.no_grad():
            self.cache.reset()
            self.model.set_experts_implementation("grouped_mm")
            made = [self.next(self.prompts)]
            self.model.set_experts_implementation(self.experts)
            after_prompts()
            for _ in range(count - 1):
                # A CUDA graph's output lies where its next replay writes.
                made.append(self.step(made[-1]).clone())
        return torch.cat(made, 1)

    def milliseconds(self):
        """Of a step, on average."""
        began = 0

        def begin():
            nonlocal began
            self._wait()
            began = time.perf_counter()

        self.tokens(NEW, begin)
        self._wait()
        return (time.perf_counter() - began) * 1e3 / (NEW - 1)

    def _wait(self):
        import torch

        if self.prompts.is_cuda:
            torch.cuda.synchronize()


def rows(_):
    config = model.config_of("olmoe-1b-7b")
    return [Row(batch, config) for batch in BATCHES]
