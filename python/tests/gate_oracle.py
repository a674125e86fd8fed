"""Every published gate in float64 NumPy, written from the papers and the published code, sharing nothing with the compiler or the runtime.

One function a gate, not one function with options: what the options of #moe.router mean together is what test_gates.py is about. Each takes
logits [T,E] and gives (ids [T,k], weights [T,k], margin): margin is the smallest distance, over tokens, between what was chosen and what was
not; a case with a small one may rightly choose differently in float32.
"""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def sqrt_softplus(x):
    return np.sqrt(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0))


def choose(keys, k):
    """-> (ids of the k largest, in falling order; margin)"""
    order = np.argsort(-keys, axis=-1, kind="stable")
    ranked = np.take_along_axis(keys, order, -1)
    return order[:, :k], float((ranked[:, k - 1] - ranked[:, k]).min()) if k < keys.shape[-1] else np.inf


def take(scores, ids):
    return np.take_along_axis(scores, ids, -1)


def softmax_topk(logits, k, renorm):
    """Mixtral (renorm), OLMoE (none), Qwen (either), Switch (k = 1, none)."""
    probs = softmax(logits)
    ids, margin = choose(probs, k)
    weights = take(probs, ids)
    return ids, weights / weights.sum(-1, keepdims=True) if renorm else weights, margin


def topk_softmax(logits, k):
    """gpt-oss, Granite: the softmax runs over the chosen logits."""
    ids, margin = choose(logits, k)
    return ids, softmax(take(logits, ids)), margin


def open_groups(keys, group_scores, keep):
    """keys with -inf outside the `keep` best groups; margin of the groups."""
    groups = group_scores.shape[-1]
    kept, margin = choose(group_scores, keep)
    closed = np.ones_like(group_scores, bool)
    np.put_along_axis(closed, kept, False, -1)
    return np.where(np.repeat(closed, keys.shape[-1] // groups, -1), -np.inf, keys), margin


def deepseek_v2(logits, k, groups, keep, scale):
    probs = softmax(logits)
    group_scores = probs.reshape(len(probs), groups, -1).max(-1)
    keys, outer = open_groups(probs, group_scores, keep)
    ids, inner = choose(keys, k)
    return ids, take(probs, ids) * scale, min(inner, outer)


def deepseek_v3(logits, bias, k, groups, keep, renorm, scale):
    """Also GLM-4.5."""
    scores = sigmoid(logits)
    keys = scores + bias
    top = np.sort(keys.reshape(len(keys), groups, -1), axis=-1)
    keys, outer = open_groups(keys, top[..., -1] + top[..., -2], keep)
    ids, inner = choose(keys, k)
    weights = take(scores, ids)
    if renorm:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return ids, weights * scale, min(inner, outer)


def deepseek_v4(logits, bias, k, scale):
    scores = sqrt_softplus(logits)
    ids, margin = choose(scores + bias, k)
    weights = take(scores, ids)
    return ids, weights / (weights.sum(-1, keepdims=True) + 1e-20) * scale, margin


def ernie(logits, bias, k, norm_min):
    probs = softmax(logits)
    ids, margin = choose(probs + bias, k)
    weights = take(probs, ids)
    return ids, weights / np.maximum(weights.sum(-1, keepdims=True), norm_min), margin


def llama4(logits, k):
    ids, margin = choose(logits, k)
    return ids, sigmoid(take(logits, ids)), margin


def sparsemixer(logits, k, jitter_eps):
    """Phi-3.5-MoE outside training. The margin also counts how near an expert is to the threshold, where its part of a weight vanishes."""
    left = logits.copy()
    ids, weights, margin = [], [], choose(logits, k)[1]
    for _ in range(k):
        top = left.max(-1, keepdims=True)
        distance = (top - logits) / np.maximum(np.abs(logits), top) - 2 * jitter_eps
        margin = min(margin, float(np.abs(distance[np.isfinite(left)]).min()))
        near = np.where(distance > 0, -np.inf, left)
        best = left.argmax(-1)[:, None]
        ids.append(best)
        weights.append(take(softmax(near), best))
        np.put_along_axis(left, best, -np.inf, -1)
    return np.concatenate(ids, -1), np.concatenate(weights, -1), margin
