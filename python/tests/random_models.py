"""Small random models of the four classes, with a mesh that fits them.

`draw` makes everything of a case from one random generator: config.json as the class writes it, weights in one of the layouts that
checkpoints have, inputs, mesh and ragged bound. Which combinations are legal is said here and only here: dp divides the batch, ep the
experts, tp the query heads and every width; nothing else need divide (vocabulary, hidden size, sequence, kv heads).
"""

from dataclasses import dataclass

import numpy as np

from common import CLASSES
from moira import checkpoint

MAX_RANKS = 8
AXIS_SIZES = {"dp": (1, 2, 3, 4), "ep": (1, 2, 3, 4, 6, 8), "tp": (1, 2, 3, 4)}


@dataclass
class Capacity:
    """Of every expert, as moe-opt's options give it."""

    factor: float
    policy: str
    minimum: int
    seed: int


@dataclass
class Case:
    config: dict
    tensors: dict  # {name: float32 array}: the values that the checkpoint really holds
    disk: dict  # the same as checkpoint.write wants them (maybe in half precision)
    shards: int
    input_ids: np.ndarray
    attention_mask: np.ndarray | None
    mesh: str
    bound: int | None
    capacity: Capacity | None

    @property
    def options(self):
        batch, seq = self.input_ids.shape
        options = [f"--batch={batch}", f"--seq={seq}"]
        if self.mesh:
            options.append(f"--mesh={self.mesh}")
        if self.bound:
            options.append(f"--ragged-bound={self.bound}")
        if self.capacity:
            c = self.capacity
            options += [f"--capacity-factor={c.factor}", f"--drop-policy={c.policy}", f"--min-capacity={c.minimum}"]
            options += [f"--drop-seed={c.seed}"] if c.policy == "random" else []
        return options

    def write(self, directory):
        """Writes the model directory with inputs.safetensors in it."""
        checkpoint.write_model(directory, self.config, self.disk, self.shards)
        inputs = {"input_ids": self.input_ids}
        if self.attention_mask is not None:
            inputs["attention_mask"] = self.attention_mask
        checkpoint.write(directory / "inputs.safetensors", inputs)


def draw_mesh(rng):
    """{axis: size} with at most MAX_RANKS ranks."""
    while True:
        mesh = {axis: int(rng.choice(sizes)) for axis, sizes in AXIS_SIZES.items()}
        if np.prod(list(mesh.values())) <= MAX_RANKS:
            return mesh


def chance(rng, p):
    return bool(rng.random() < p)


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def draw_config(rng, kind, mesh):
    """A config.json of this class whose sizes the mesh divides."""
    tp, ep = mesh["tp"], mesh["ep"]
    heads = tp * int(rng.integers(1, 4 if tp < 3 else 2 + (tp == 3)))
    # Norms over very few values amplify rounding without bound (two values may nearly cancel): keep them over four and eight or more.
    head_dim = int(rng.choice([d for d in (2, 4, 6, 8) if heads * d >= 8 and (d >= 4 or kind != "qwen3_moe")]))
    experts = ep * int(rng.integers(2 if ep == 1 else 1, 5 if ep < 4 else 3))
    top_k = int(rng.integers(1, min(experts, 5) + 1))

    def width():
        return tp * int(rng.integers(2, 9))

    config = {
        "model_type": kind,
        "hidden_act": "silu",
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice(divisors(heads))),
        "hidden_size": heads * head_dim,
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_experts_per_tok": top_k,
        "vocab_size": int(rng.integers(11, 90)),
        "rms_norm_eps": float(rng.choice((1e-5, 1e-6))),
        "max_position_embeddings": 64,
        "tie_word_embeddings": chance(rng, 0.3),
        "intermediate_size": width(),
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    expert_field = "num_local_experts" if kind == "mixtral" or (kind == "qwen3_moe" and chance(rng, 0.5)) else "num_experts"
    config[expert_field] = experts
    draw_rope(rng, config)
    if kind in ("mixtral", "qwen3_moe") and chance(rng, 0.5):
        config["head_dim"] = head_dim
        config["hidden_size"] = int(rng.integers(8, 33))
    if kind == "mixtral" and chance(rng, 0.4):
        config["sliding_window"] = int(rng.integers(1, 9))
    if kind != "mixtral" and chance(rng, 0.7):
        config["norm_topk_prob"] = chance(rng, 0.5)
    if kind == "olmoe" and chance(rng, 0.5):
        config["clip_qkv"] = float(rng.choice((0.5, 1.0, 2.0)))
    if kind in ("qwen3_moe", "olmoe") and chance(rng, 0.3):
        config["attention_bias"] = True
    if kind == "qwen2_moe":
        config["shared_expert_intermediate_size"] = width()
        if chance(rng, 0.5):
            config["qkv_bias"] = chance(rng, 0.5)
    if kind in ("qwen2_moe", "qwen3_moe"):
        config["moe_intermediate_size"] = width()
        config["decoder_sparse_step"] = int(rng.choice((1, 1, 2)))
        config["mlp_only_layers"] = [0] if chance(rng, 0.2) else []
    return config


def draw_rope(rng, config):
    """Rotary settings, spelt as transformers 4 or 5 writes them; sometimes with linear scaling."""
    theta = float(rng.choice((1e4, 1e6, 5e5)))
    linear = chance(rng, 0.2)
    if chance(rng, 0.5):
        rope = {"rope_theta": theta, "rope_type": "linear" if linear else "default"}
        config["rope_parameters"] = {**rope, "factor": 2.0} if linear else rope
        config["dtype"] = "float32"
    else:
        config["rope_theta"] = theta
        config["rope_scaling"] = {"type": "linear", "factor": 4.0} if linear else None
        config["torch_dtype"] = "float32"


def draw_weights(rng, config):
    """{name: float32 array} for every tensor of the model, experts one by one."""
    kind, hidden = config["model_type"], config["hidden_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    experts = config.get("num_local_experts") or config["num_experts"]
    tensors = {}

    def matrix(name, rows, cols, gain=1.0):
        tensors[name + ".weight"] = (rng.standard_normal((rows, cols)) * gain / np.sqrt(cols)).astype(np.float32)

    def vector(name, size, centre):
        tensors[name] = (centre + 0.2 * rng.standard_normal(size)).astype(np.float32)

    def glu_block(prefix, names, width):
        for name in names[:2]:
            matrix(prefix + name, width, hidden)
        matrix(prefix + names[2], hidden, width)

    tensors["model.embed_tokens.weight"] = rng.standard_normal((config["vocab_size"], hidden)).astype(np.float32)
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        vector(base + "input_layernorm.weight", hidden, 1.0)
        vector(base + "post_attention_layernorm.weight", hidden, 1.0)
        attn = base + "self_attn."
        for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            matrix(attn + name + "_proj", rows * head_dim, hidden)
            if (kind == "qwen2_moe" and config.get("qkv_bias", True)) or config.get("attention_bias"):
                vector(attn + name + "_proj.bias", rows * head_dim, 0.0)
        matrix(attn + "o_proj", hidden, heads * head_dim)
        if config.get("attention_bias"):
            vector(attn + "o_proj.bias", hidden, 0.0)
        if kind in ("qwen3_moe", "olmoe"):
            whole = kind == "olmoe"
            vector(attn + "q_norm.weight", heads * head_dim if whole else head_dim, 1.0)
            vector(attn + "k_norm.weight", kv_heads * head_dim if whole else head_dim, 1.0)

        step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
        projections = ("gate_proj", "up_proj", "down_proj")
        if layer in dense or (layer + 1) % step != 0:
            glu_block(base + "mlp.", projections, config["intermediate_size"])
            continue
        block, names = ("block_sparse_moe.", ("w1", "w3", "w2")) if kind == "mixtral" else ("mlp.", projections)
        matrix(base + block + "gate", experts, hidden, gain=2.0)
        width = config.get("moe_intermediate_size") or config["intermediate_size"]
        for expert in range(experts):
            glu_block(f"{base}{block}experts.{expert}.", names, width)
        if kind == "qwen2_moe":
            glu_block(base + "mlp.shared_expert.", projections, config["shared_expert_intermediate_size"])
            matrix(base + "mlp.shared_expert_gate", 1, hidden)
    vector("model.norm.weight", hidden, 1.0)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", config["vocab_size"], hidden)
    return tensors


def stack_experts(config, tensors):
    """The same weights under the names that transformers 5 has in memory: gate_up_proj [E,2F,D], down_proj [E,D,F]."""
    mixtral = config["model_type"] == "mixtral"
    block, names = ("block_sparse_moe.", ("w1", "w3", "w2")) if mixtral else ("mlp.", ("gate_proj", "up_proj", "down_proj"))
    experts = config.get("num_local_experts") or config["num_experts"]
    out = {}
    for name, value in tensors.items():
        if ".experts." not in name:
            out[name.replace("block_sparse_moe.gate", "mlp.gate")] = value
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        if f"{base}{block}gate.weight" not in tensors:
            continue
        gate, up, down = (
            np.stack([tensors[f"{base}{block}experts.{e}.{n}.weight"] for e in range(experts)]) for n in names
        )
        out[base + "mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        out[base + "mlp.experts.down_proj"] = down
    return out


def draw(rng):
    mesh = draw_mesh(rng)
    kind = str(rng.choice(CLASSES))
    config = draw_config(rng, kind, mesh)
    tensors = draw_weights(rng, config)
    if chance(rng, 0.4):
        tensors = stack_experts(config, tensors)
    precision = str(rng.choice(("F32", "F32", "F32", "BF16", "F16")))
    disk = {name: checkpoint.stored(value, precision) for name, value in tensors.items()}
    if precision == "BF16":
        tensors = {n: (checkpoint.to_bf16(t).astype(np.uint32) << 16).view(np.float32) for n, t in tensors.items()}
    elif precision == "F16":
        tensors = {n: t.astype(np.float32) for n, t in disk.items()}

    batch, seq = mesh["dp"] * int(rng.integers(1, 4)), int(rng.integers(1, 13))
    ids = rng.integers(0, config["vocab_size"], (batch, seq)).astype(rng.choice((np.int32, np.int64)))
    mask = (rng.random((batch, seq)) < 0.8).astype(ids.dtype) if chance(rng, 0.25) else None
    bound = int(rng.choice((1, 2, 5, 1000))) if chance(rng, 0.5) else None
    text = ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1)
    shards = int(rng.choice((1, 1, 3)))
    return Case(config, tensors, disk, shards, ids, mask, text, bound, draw_capacity(rng) if chance(rng, 0.4) else None)


def draw_capacity(rng):
    policy = str(rng.choice(("position", "probs", "random", "priority")))
    return Capacity(float(rng.choice((0.5, 1.0, 1.25))), policy, int(rng.integers(0, 3)), int(rng.integers(0, 2**40)))
