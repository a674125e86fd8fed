"""Whole models beside transformers' with grouped_mm experts: a training step, and a forward pass. Random weights, the same for all.

Ours trains f32 weights with bf16 products and experts' and projections' gradients; the peer's weights, gradients and AdamW states (torch's fused one)
are bf16, which moves less. Belongs here: rows and peers of whole models. Does not: rounds and tables (measure.py, report.py).
"""

import functools
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import layer
import numpy as np
from moira.runtime import Session
from moira.tools import compile_plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RATE = 1e-5
# config, layers that are kept of it (None: all), task, batch, sequence, and what moe-opt gets besides for a GPU
MODELS = {
    "Qwen3-4-layers": ("qwen3-30b-a3b", 4, "train", 4, 4096),
    # attention's gradient by sums in any order, as the peer's is
    "Qwen3-4-layers-fastest": ("qwen3-30b-a3b", 4, "train", 4, 4096, "--attention-grad=fastest"),
    "OLMoE": ("olmoe-1b-7b", None, "forward", 4, 2048),
}


@dataclass
class Row:
    shape: str
    device: str = "cuda"
    case = "model"
    bytes, goal = None, {"ahead": 2}

    def __post_init__(self):
        folder, layers, self.task, self.batch, self.sequence, *self.options = MODELS[self.shape]
        self.config = config_of(folder, layers)
        self.title, self.plan = f"{self.shape} {self.task} {self.batch} x {self.sequence}", f"model-{self.shape}.moeplan"
        self.flops = flops(self.config, self.batch, self.sequence) * (3 if self.task == "train" else 1)

    def compile(self, plan, target="sm_90"):
        compile_model(self.config, plan, f"--task={self.task}", f"--batch={self.batch}", f"--seq={self.sequence}", "--dtype=bf16",
                      *(["--grad-dtype=bf16"] if self.task == "train" else []), "--padding=off", f"--target={target}", *(self.options if target != "host" else []))

    @contextmanager
    def contestants(self, plan, clock, options):
        import torch

        model = make_model(self.config, self.device)
        draw = torch.Generator(self.device).manual_seed(3)
        ids = torch.randint(0, self.config["vocab_size"], (self.batch, self.sequence), device=self.device, generator=draw)
        inputs = {"input_ids": ids.to(torch.int32).cpu().numpy()}
        if self.task == "train":
            inputs |= {"lr": np.full(1, RATE, np.float32), "step": np.ones(1, np.int32)}
        with opened(plan, model, options) as session:
            found, notes = {}, {}
            if session:
                notes["difference"] = self.difference(session, inputs, model, ids)
                found["moira"] = lambda: layer.median(session, inputs, clock)
            for name in options.peers.split(","):
                if name in ("eager", "compiled"):
                    run = self.peer(model, ids, name == "compiled")
                    found[f"transformers {name}"] = lambda run=run: clock.median(run)
            yield found, notes
        torch._dynamo.reset()

    def difference(self, session, inputs, model, ids):
        """Between our loss, or logits, and the peer's, relative."""
        import torch

        ours = session.forward(inputs)
        with torch.no_grad():
            theirs = model(input_ids=ids, labels=ids if self.task == "train" else None, use_cache=False)
        if self.task == "train":
            return abs(float(ours["loss"][0]) - float(theirs.loss)) / float(theirs.loss)
        logits = torch.from_numpy(ours["logits"])
        return float((logits - theirs.logits.float().cpu()).norm() / logits.norm())

    def peer(self, model, ids, compiled):
        """A step of the peer, which trains its own weights on."""
        import torch

        if self.task == "forward":
            call = torch.compile(model, dynamic=False) if compiled else model

            def run():
                with torch.no_grad():
                    call(input_ids=ids, use_cache=False)

            return run
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)

        def loss_of():
            return model(input_ids=ids, labels=ids, use_cache=False).loss

        call = torch.compile(loss_of, dynamic=False) if compiled else loss_of

        def run():
            call().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run


def flops(config, batch, sequence):
    """Of a forward pass: products with the weights that a token meets, and causal attention."""
    hidden, layers, k = config["hidden_size"], config["num_hidden_layers"], config["num_experts_per_tok"]
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    weights = layers * (hidden * head * (2 * heads + 2 * kv) + hidden * config["num_experts"] + 3 * k * width * hidden) + config["vocab_size"] * hidden
    return 2 * batch * sequence * weights + layers * 2 * batch * sequence**2 * heads * head


def config_of(example, layers=None):
    """The configuration of an example's model, with so many of its layers."""
    config = json.loads((EXAMPLES / example / "config.json").read_text())
    return config | ({"num_hidden_layers": layers} if layers else {})


def compile_model(config, plan, *options):
    """Writes the plan of a model, and beside it the configuration that it is made of."""
    folder = Path(plan).with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    compile_plan(folder / "config.json", plan, *options, "--report=none")


def make_model(config, device):
    """The same one again where it was the last that was asked for."""
    return _make_model(json.dumps(config), device)


@functools.lru_cache(maxsize=1)
def _make_model(config, device):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    kind = AutoConfig.for_model(**json.loads(config))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(kind, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.set_experts_implementation("grouped_mm")
    return model


@contextmanager
def opened(plan, model, options):
    """Our session with the model's weights; None where peers are alone."""
    if options.peers_only:
        yield None
        return
    with Session(plan) as session:
        write_weights(session, model)
        yield session


def write_weights(session, model):
    """The model's weights into the states of their names; what an optimizer keeps, and caches, stay zero."""
    import torch

    weights = dict(model.named_parameters())
    for state in session.states:
        if state.name.endswith((".adamw.m", ".adamw.v")) or state.name.startswith("cache."):
            continue
        tensor = weights[state.name].detach()
        assert tensor.numel() == int(np.prod(state.shape)), state.name
        tensor = tensor.contiguous() if state.dtype == np.uint16 else tensor.float().contiguous()
        if tensor.is_cuda:
            torch.cuda.synchronize()
        session.write(state.name, tensor.data_ptr())


def rows(_):
    return [Row(shape) for shape in MODELS]
