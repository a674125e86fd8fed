"""Which choices an expert has room for, in NumPy, written from the definitions in docs/routing.md; the draws of Philox from its paper.

Claims are listed and sorted, expert by expert: slow and plain.
"""

import math

import numpy as np

MASK = 0xFFFFFFFF


def philox(key, counter):
    """The four words of Philox 4x32-10 for a 64-bit key and four 32-bit counters."""
    k0, k1 = key & MASK, key >> 32 & MASK
    c = list(counter)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k0, second & MASK, first >> 32 ^ c[3] ^ k1, first & MASK]
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return c


def capacity_of(rule, value, least, tokens, experts, k):
    if rule == "fixed":
        return min(int(value), tokens)
    size = {
        "factor": math.ceil((tokens / experts) * (value * k)),
        "rounded": math.ceil(value * k * math.ceil(tokens / experts)),
        "fraction": math.ceil(value * tokens),
    }[rule]
    return min(max(size, least), tokens)


def keep(ids, weights, experts, capacity, domains, policy, order, seed=0, layer=0, step=0):
    """(kept [T,k] of bool, margin): margin is the smallest distance between a kept and a dropped merit of one expert, where merits are weights."""
    tokens, k = ids.shape
    kept, margin = np.zeros(ids.shape, bool), np.inf
    for domain in np.split(np.arange(tokens), domains):
        for expert in range(experts):
            claims = []
            for token in domain:
                for choice in range(k):
                    if ids[token, choice] != expert:
                        continue
                    merit = {
                        "position": 0.0,
                        "probs": float(weights[token, choice]),
                        "random": float(philox(seed, (int(token), expert, layer, step))[0]) if policy == "random" else 0.0,
                        "priority": float(weights[token].max()),
                    }[policy]
                    claims.append((choice if order == "choice_major" else 0, -merit, int(token), choice))
            claims.sort()
            for _, _, token, choice in claims[:capacity]:
                kept[token, choice] = True
            if policy in ("probs", "priority") and 0 < capacity < len(claims):
                last, first = claims[capacity - 1], claims[capacity]
                if last[0] == first[0]:
                    margin = min(margin, first[1] - last[1])
    return kept, margin


def weigh(weights, kept, renorm, epsilon=0.0, clamp_min=0.0, scale=1.0):
    if renorm != "none":
        counted = weights if renorm == "before" else np.where(kept, weights, 0.0)
        total = np.maximum(counted.sum(-1, keepdims=True) + epsilon, clamp_min)
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = weights / total
    return np.where(kept, weights * scale, 0.0)
