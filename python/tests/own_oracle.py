"""Models of one's own in NumPy (f64), from their weights' names and a plain list of what each layer is: nothing of moira is used here.

A layer is a dict: heads, kv_heads, norm ("rms" or "layer"), rope (bool), window, qk_norm (bool), and either width (dense) or experts, k and
what else `sparse` below reads; form is (activation, gated, bias).
"""

import math

import numpy as np
from capacity_oracle import capacity_of, keep

ACTS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Oracle:
    def __init__(self, tensors, eps=1e-5):
        self.w = {n: t.astype(np.float64) for n, t in tensors.items()}
        self.eps = eps
        self.dropped = 0
        self.gap = np.inf  # smallest distance between a choice and one that was not made

    def norm(self, x, name, kind):
        if kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.w[f"{name}.weight"]
        return x + self.w.get(f"{name}.bias", 0)

    def dense(self, x, name, form):
        act, gated, _ = form
        up = x @ self.w[f"{name}.up.weight"].T + self.w.get(f"{name}.up.bias", 0)
        if gated:
            up = up * ACTS[act](x @ self.w[f"{name}.gate.weight"].T + self.w.get(f"{name}.gate.bias", 0))
        else:
            up = ACTS[act](up)
        return up @ self.w[f"{name}.down.weight"].T + self.w.get(f"{name}.down.bias", 0)

    def attention(self, x, memory, name, layer, mask, causal, bias=0):
        """x [B,S,D], memory [B,T,D], mask [B,T], bias [H,S,T]."""
        H, Hk = layer["heads"], layer.get("kv_heads", layer["heads"])
        B, S, D = x.shape
        T = memory.shape[1]

        def project(of, what, heads):
            y = (of @ self.w[f"{name}.{what}.weight"].T + self.w.get(f"{name}.{what}.bias", 0)).reshape(B, of.shape[1], heads, -1)
            if what != "v" and layer.get("qk_norm"):
                y = self.norm(y, f"{name}.{what}_norm", "rms")
            if what != "v" and layer.get("rope"):
                d = y.shape[-1]
                angles = np.arange(of.shape[1])[:, None] * 10000.0 ** (-2 * np.arange(d // 2) / d)
                cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
                a, b = y[..., : d // 2], y[..., d // 2 :]
                y = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
            return y

        q, k, v = project(x, "q", H), project(memory, "k", Hk), project(memory, "v", Hk)
        k, v = np.repeat(k, H // Hk, 2), np.repeat(v, H // Hk, 2)
        scores = np.einsum("bshd,bthd->bhst", q, k) / math.sqrt(q.shape[-1]) + bias
        sees = np.broadcast_to(mask[:, None, None, :] != 0, (B, 1, S, T)).copy()
        if causal:
            distance = np.arange(S)[:, None] - np.arange(T)
            sees &= distance >= 0
            if layer.get("window"):
                sees &= distance < layer["window"]
        out = np.einsum("bhst,bthd->bshd", softmax(np.where(sees, scores, -1e30)), v)
        return out.reshape(B, S, -1) @ self.w[f"{name}.o.weight"].T + self.w.get(f"{name}.o.bias", 0)

    def sparse(self, x, name, layer, number):
        """x [B,S,D]. Reads experts, k, form, renorm, capacity (rule, value, least, policy, seed, step), residual ("sum", "softmax"), shared, shared_gate."""
        E, k, form = layer["experts"], layer["k"], layer["form"]
        tokens = x.reshape(-1, x.shape[-1])
        probs = softmax(tokens @ self.w[f"{name}.router.weight"].T)
        ids = np.argsort(-probs, -1, kind="stable")[:, :k]
        weights = np.take_along_axis(probs, ids, -1)
        if k < E:
            ordered = -np.sort(-probs, -1)
            self.gap = min(self.gap, (ordered[:, k - 1] - ordered[:, k]).min())
        merits = weights  # what choices compete by, before they are renormalised
        if layer.get("renorm"):
            weights = weights / weights.sum(-1, keepdims=True)
        kept = np.ones(ids.shape, bool)
        if "capacity" in layer:
            c = layer["capacity"]
            most = capacity_of(c["rule"], c["value"], c.get("least", 0), len(tokens), E, k)
            kept, margin = keep(ids, merits, E, most, 1, c["policy"], "token_major", c.get("seed", 0), number, c.get("step", 0))
            if c["policy"] in ("probs", "priority"):
                self.gap = min(self.gap, margin)
            self.dropped += int((~kept).sum())
        y = np.zeros_like(tokens)
        for t in range(len(tokens)):
            for j in range(k):
                if kept[t, j]:
                    y[t] += weights[t, j] * self.dense(tokens[t], f"{name}.experts.{ids[t, j]}", form)
        y = y.reshape(x.shape)
        if "residual" in layer:
            dense = self.dense(x, f"{name}.residual", form)
            if layer["residual"] == "softmax":
                mix = softmax(x @ self.w[f"{name}.coefficient.weight"].T + self.w[f"{name}.coefficient.bias"])
                y, dense = y * mix[..., :1], dense * mix[..., 1:]
            y = y + dense
        if layer.get("shared"):
            shared = self.dense(x, f"{name}.shared", form)
            if layer.get("shared_gate"):
                shared = shared / (1 + np.exp(-(x @ self.w[f"{name}.shared_gate.weight"].T)))
            y = y + shared
        return y

    def stack(self, x, prefix, layers, mask, causal, memory=None, memory_mask=None, first=0):
        table = self.w.get(f"{prefix}relative_bias.weight")
        bias = 0 if table is None else relative_bias(table, x.shape[1], layers[0]["max_distance"], not causal)
        for i, layer in enumerate(layers):
            name, kind = f"{prefix}layers.{i}", layer["norm"]
            h = self.norm(x, f"{name}.attention_norm", kind)
            x = x + self.attention(h, h, f"{name}.attention", layer, mask, causal, bias)
            if memory is not None:
                h = self.norm(x, f"{name}.cross_norm", kind)
                x = x + self.attention(h, memory, f"{name}.cross", layer, memory_mask, False)
            h = self.norm(x, f"{name}.feed_forward_norm", kind)
            x = x + (self.sparse(h, f"{name}.moe", layer, first + i) if "experts" in layer else self.dense(h, f"{name}.mlp", layer["form"]))
        return self.norm(x, f"{prefix}final_norm", layers[0]["norm"])


def relative_bias(table, size, max_distance, both_ways):
    """T5's bias [H,S,S]: half of the buckets for small distances, the others growing by logarithm; both ways, half of all for later keys."""
    buckets = len(table) // 2 if both_ways else len(table)
    exact = buckets // 2
    out = np.zeros((table.shape[1], size, size))
    for i in range(size):
        for j in range(size):
            later = buckets if both_ways and j > i else 0
            distance = abs(i - j) if both_ways else max(i - j, 0)
            if distance >= exact:
                grown = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact))
                distance = min(grown, buckets - 1)
            out[:, i, j] = table[later + distance]
    return out


def sinusoid(ids, pad, width):
    """M2M-100's positions: counted without padding, from pad + 1 on; padding has none."""
    real = ids != pad
    pos = np.cumsum(real, 1) * real + pad
    half = width // 2
    angles = pos[..., None] * np.exp(np.arange(half) * -(math.log(10000) / (half - 1)))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1) * real[..., None]
