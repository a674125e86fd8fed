"""Prints what a run of the bundled model gave: for each sequence the three likeliest next characters.

    PYTHONPATH=python build/venv/bin/python examples/tiny-moe/show.py OUTPUTS.safetensors
"""

import sys
from pathlib import Path

import numpy as np

from moira import checkpoint

inputs = checkpoint.read(Path(__file__).resolve().parent / "inputs.safetensors")["input_ids"]
logits = checkpoint.read(sys.argv[1])["logits"]
print(f"logits {list(logits.shape)} {logits.dtype}: smallest {logits.min():.4f}, largest {logits.max():.4f}")
for row, ids in enumerate(inputs):
    last = logits[row, -1].astype(np.float64)
    probs = np.exp(last - last.max())
    probs /= probs.sum()
    best = np.argsort(-last, kind="stable")[:3]
    guesses = ", ".join(f"{chr(t)!r} {probs[t]:.3f}" for t in best)
    print(f"  after {''.join(map(chr, ids)).rstrip()!r:28} comes {guesses}")
