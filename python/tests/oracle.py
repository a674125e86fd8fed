"""An independent answer: the forward pass of mixtral, qwen2_moe, qwen3_moe and olmoe in float64 NumPy.

Written from the published definitions of these classes, sharing nothing with the compiler or the runtime, so that an error in the
importer or in the reference program does not hide itself. One plain function a concept; speed does not matter.
test_oracle.py holds it against the golden logits.
"""

from dataclasses import dataclass

import numpy as np

import capacity_oracle

# What a config means when it leaves a field out.
DEFAULTS = {
    "mixtral": {"num_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "qwen2_moe": {"num_experts": 60, "num_experts_per_tok": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "norm_topk_prob": False, "qkv_bias": True},
    "qwen3_moe": {"num_experts": 128, "num_experts_per_tok": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "norm_topk_prob": False},
    "olmoe": {"num_experts": 64, "num_experts_per_tok": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "norm_topk_prob": False},
}


@dataclass
class Result:
    logits: np.ndarray  # [B, S, V] float64
    gap: float  # smallest distance, over tokens and layers, between the k-th and the next router probability, and of what a capacity compares
    dropped: int  # choices over the experts' capacity


class Model:
    """A checkpoint: config fields by meaning and tensors by name, in float64."""

    def __init__(self, config, tensors):
        self.config = config
        self.kind = config["model_type"]
        self.tensors = {name: np.asarray(t, np.float64) for name, t in tensors.items()}
        self.experts = self.get("num_local_experts") or self.get("num_experts")
        self.top_k = self.get("num_experts_per_tok")
        self.hidden = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or self.hidden // self.heads
        self.eps = self.get("rms_norm_eps")

    def get(self, field):
        value = self.config.get(field)
        return DEFAULTS[self.kind].get(field) if value is None else value

    def weight(self, name):
        return self.tensors[name]

    def window(self):
        """Width of the sliding window, or 0."""
        if self.kind == "mixtral":
            return self.config.get("sliding_window") or 0
        return 0

    def is_sparse(self, layer):
        if self.kind in ("mixtral", "olmoe"):
            return True
        step = self.config.get("decoder_sparse_step") or 1
        return layer not in (self.config.get("mlp_only_layers") or []) and (layer + 1) % step == 0


def silu(x):
    return x / (1.0 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rope_angles(model, seq):
    """[S, head_dim/2] angles; linear scaling divides the positions."""
    rope = model.config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or model.get("rope_theta")
    scaling = model.config.get("rope_scaling") or rope
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    assert kind in ("default", "linear"), kind
    factor = scaling["factor"] if kind == "linear" else 1.0
    half = model.head_dim // 2
    inv_freq = theta ** (-np.arange(half) / half)
    return np.arange(seq)[:, None] / factor * inv_freq[None, :]


def rotate(x, angles):
    """x [B,S,H,d]; the first half of d is the real part, the second the imaginary one."""
    half = x.shape[-1] // 2
    re, im = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles)[None, :, None, :], np.sin(angles)[None, :, None, :]
    return np.concatenate([re * cos - im * sin, im * cos + re * sin], -1)


def projection(model, x, prefix):
    y = x @ model.weight(prefix + ".weight").T
    bias = model.tensors.get(prefix + ".bias")
    return y if bias is None else y + bias


def attention(model, x, layer, mask):
    base = f"model.layers.{layer}.self_attn."
    batch, seq, _ = x.shape
    q, k, v = (projection(model, x, base + n) for n in ("q_proj", "k_proj", "v_proj"))
    if model.kind == "olmoe":
        q = rms_norm(q, model.weight(base + "q_norm.weight"), model.eps)
        k = rms_norm(k, model.weight(base + "k_norm.weight"), model.eps)
        clip = model.config.get("clip_qkv")
        if clip is not None:
            q, k, v = (np.clip(t, -clip, clip) for t in (q, k, v))
    q = q.reshape(batch, seq, model.heads, model.head_dim)
    k = k.reshape(batch, seq, model.kv_heads, model.head_dim)
    v = v.reshape(batch, seq, model.kv_heads, model.head_dim)
    if model.kind == "qwen3_moe":
        q = rms_norm(q, model.weight(base + "q_norm.weight"), model.eps)
        k = rms_norm(k, model.weight(base + "k_norm.weight"), model.eps)
    angles = rope_angles(model, seq)
    q, k = rotate(q, angles), rotate(k, angles)
    group = model.heads // model.kv_heads
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)

    scores = np.einsum("bihd,bjhd->bhij", q, k) * model.head_dim**-0.5
    i, j = np.arange(seq)[:, None], np.arange(seq)[None, :]
    seen = j <= i
    if model.window():
        seen &= i - j < model.window()
    seen = seen[None, None] & (mask[:, None, None, :] != 0)
    scores = np.where(seen, scores, -np.inf)
    # A query that sees nothing has no distribution over keys: its output is zero.
    top = scores.max(-1, keepdims=True)
    e = np.where(seen, np.exp(scores - np.where(np.isfinite(top), top, 0.0)), 0.0)
    total = e.sum(-1, keepdims=True)
    probs = np.divide(e, total, out=np.zeros_like(e), where=total > 0)
    out = np.einsum("bhij,bjhd->bihd", probs, v).reshape(batch, seq, -1)
    return projection(model, out, base + "o_proj")


def mlp(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def dense_mlp(model, x, prefix):
    return mlp(x, *(model.weight(f"{prefix}.{n}_proj.weight") for n in ("gate", "up", "down")))


def expert_weights(model, layer, expert):
    """(gate [F,D], up [F,D], down [D,F]) from whichever layout the checkpoint has."""
    stacked = f"model.layers.{layer}.mlp.experts.gate_up_proj"
    if stacked in model.tensors:
        both = model.weight(stacked)[expert]
        width = both.shape[0] // 2
        return both[:width], both[width:], model.weight(f"model.layers.{layer}.mlp.experts.down_proj")[expert]
    if model.kind == "mixtral":
        base = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
        return tuple(model.weight(base + n + ".weight") for n in ("w1", "w3", "w2"))
    base = f"model.layers.{layer}.mlp.experts.{expert}."
    return tuple(model.weight(base + n + "_proj.weight") for n in ("gate", "up", "down"))


def router_weight(model, layer):
    for name in ("block_sparse_moe", "mlp"):
        weight = model.tensors.get(f"model.layers.{layer}.{name}.gate.weight")
        if weight is not None:
            return weight
    raise KeyError(f"router of layer {layer}")


def moe(model, x, layer, number, capacity, step):
    """x [T,D] -> (y [T,D], smallest routing gap, dropped choices); this is sparse block `number`."""
    probs = softmax(x @ router_weight(model, layer).T)
    order = np.argsort(-probs, axis=-1, kind="stable")
    chosen = order[:, : model.top_k]
    weights = np.take_along_axis(probs, chosen, -1)
    gap = np.inf
    if model.top_k < model.experts:
        after = np.take_along_axis(probs, order[:, model.top_k : model.top_k + 1], -1)
        gap = float((weights[:, -1:] - after).min())
    kept = np.ones(chosen.shape, bool)
    if capacity:
        room = capacity_oracle.capacity_of("factor", capacity.factor, capacity.minimum, len(x), model.experts, model.top_k)
        kept, margin = capacity_oracle.keep(
            chosen, weights, model.experts, room, 1, capacity.policy, "token_major", capacity.seed, number, step
        )
        gap = min(gap, margin)
    if model.kind == "mixtral" or model.get("norm_topk_prob"):
        weights = weights / weights.sum(-1, keepdims=True)
    y = np.zeros_like(x)
    for expert in range(model.experts):
        token, slot = np.nonzero((chosen == expert) & kept)
        if token.size:
            y[token] += weights[token, slot, None] * mlp(x[token], *expert_weights(model, layer, expert))
    if model.kind == "qwen2_moe":
        base = f"model.layers.{layer}.mlp."
        opening = 1.0 / (1.0 + np.exp(-(x @ model.weight(base + "shared_expert_gate.weight").T)))
        y += opening * dense_mlp(model, x, base + "shared_expert")
    return y, gap, int((~kept).sum())


def forward(config, tensors, input_ids, attention_mask=None, capacity=None, step=0):
    """The logits of a model for input_ids [B,S]; `capacity` as random_models.Capacity, `step` of training."""
    model = Model(config, tensors)
    ids = np.asarray(input_ids)
    batch, seq = ids.shape
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
    embedding = model.weight("model.embed_tokens.weight")
    x = embedding[ids]
    gap, dropped, sparse = np.inf, 0, 0
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        x = x + attention(model, rms_norm(x, model.weight(base + "input_layernorm.weight"), model.eps), layer, mask)
        h = rms_norm(x, model.weight(base + "post_attention_layernorm.weight"), model.eps)
        if model.is_sparse(layer):
            y, layer_gap, layer_drops = moe(model, h.reshape(batch * seq, -1), layer, sparse, capacity, step)
            x, gap, dropped, sparse = x + y.reshape(x.shape), min(gap, layer_gap), dropped + layer_drops, sparse + 1
        else:
            x = x + dense_mlp(model, h, base + "mlp")
    x = rms_norm(x, model.weight("model.norm.weight"), model.eps)
    head = embedding if config.get("tie_word_embeddings") else model.weight("lm_head.weight")
    return Result(x @ head.T, gap, dropped)
