"""A model of one's own, from its description to its logits: PR-MoE with two sparse layers of 4 and 8 experts.

    PYTHONPATH=python build/venv/bin/python examples/own-models/pr_moe.py OUTPUT_DIRECTORY

Prints what moe-opt and moe-run say; leaves model.mlir, model.safetensors, inputs, plan and logits in the directory.
"""

import sys
from pathlib import Path

import numpy as np

from moira import checkpoint, compile_plan, run_plan
from moira.layers import MLP, Attention, Layer, MoE, Norm, Residual, Rope, Router
from moira.models import Decoder
from moira.weights import initialise

directory = Path(sys.argv[1])
mlp = MLP(width=96, activation="gelu_tanh", gated=False, bias=True)


def sparse(experts):
    """Each token meets two experts and the dense block; the two results are weighed by a softmax."""
    return MoE(experts, width=96, router=Router(k=2), activation="gelu_tanh", gated=False, bias=True, residual=Residual(mlp, mix="softmax"))


attention = Attention(heads=4, bias=True, rope=Rope())
model = Decoder(
    vocab=256,
    hidden=64,
    norm=Norm("layer"),
    tied_head=True,
    layers=[Layer(attention, feed_forward) for feed_forward in (mlp, sparse(4), mlp, sparse(8))],
)

path = model.write(directory, batch=4, seq=32)
initialise(model.program(batch=4, seq=32), directory, seed=1)
ids = np.random.default_rng(0).integers(0, 256, (4, 32)).astype(np.int32)
checkpoint.write(directory / "inputs.safetensors", {"input_ids": ids})

plan, logits = directory / "model.moeplan", directory / "logits.safetensors"
print(compile_plan(path, plan, "--mesh=dp=2,ep=2").err)
print(run_plan(plan, directory, directory / "inputs.safetensors", logits, "--check").err)
