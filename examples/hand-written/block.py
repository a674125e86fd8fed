"""Numbers for block.mlir: `block.py make DIR` writes weights and inputs, `block.py check DIR` compares DIR/logits.safetensors with NumPy."""

import sys
from pathlib import Path

import numpy as np

from moira import checkpoint

EXPERTS, CHOICES, ROOM = 4, 2, 12


def make(directory):
    rng = np.random.default_rng(7)
    shapes = {"embed": (50, 16), "gate": (4, 16), "norm": (16,)}
    for e in range(EXPERTS):
        shapes |= {f"experts.{e}.up": (24, 16), f"experts.{e}.down": (16, 24)}
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.write(directory / "model.safetensors", {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()})
    checkpoint.write(directory / "inputs.safetensors", {"input_ids": rng.integers(0, 50, (4, 8)).astype(np.int32)})


def block(w, ids):
    """ids [B, S] -> logits [B, S, V] and how many choices were dropped, expert by expert in plain NumPy."""
    x = w["embed"][ids].reshape(-1, 16).astype(np.float64)
    h = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w["norm"]
    scores = np.exp(h @ w["gate"].T)
    scores /= scores.sum(-1, keepdims=True)
    chosen = np.argsort(-scores, -1, kind="stable")[:, :CHOICES]
    weight = np.take_along_axis(scores, chosen, -1)
    weight /= weight.sum(-1, keepdims=True)
    y, dropped = np.zeros_like(x), 0
    for e in range(EXPERTS):
        claims = sorted(((-weight[t, j], t) for t, j in zip(*np.nonzero(chosen == e))))
        dropped += max(0, len(claims) - ROOM)
        for negative, t in claims[:ROOM]:
            y[t] += -negative * (w[f"experts.{e}.down"] @ np.maximum(w[f"experts.{e}.up"] @ h[t], 0))
    return ((x + y) @ w["embed"].T).reshape(*ids.shape, -1), dropped


def check(directory):
    want, dropped = block(checkpoint.read(directory / "model.safetensors"), checkpoint.read(directory / "inputs.safetensors")["input_ids"])
    got = checkpoint.read(directory / "logits.safetensors")
    error = np.abs(got["logits"] - want).max() / np.abs(want).max()
    print(f"largest difference from NumPy {error:.0e} of the largest logit; {int(got['dropped_choices'][0])} choices dropped, NumPy drops {dropped}")
    return error < 1e-5 and got["dropped_choices"][0] == dropped and dropped > 0


if __name__ == "__main__":
    command, directory = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(directory)
    else:
        sys.exit(0 if check(directory) else 1)
