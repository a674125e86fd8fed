"""Makes the bundled model of this folder: config.json, model.safetensors and inputs.safetensors. The result is committed.

    PYTHONPATH=python build/venv/bin/python examples/tiny-moe/make.py

A mixtral with 2 layers and 8 experts, about 90,000 random weights (fixed seed): small enough to live in the repository, and large
enough that every part of Moira has something to do. Its tokens are ASCII characters; it has learnt nothing, so its predictions mean
nothing either.
"""

from pathlib import Path

import numpy as np

from moira import checkpoint

HERE = Path(__file__).resolve().parent
SENTENCES = ("experts share the work   ", "each rank holds a shard  ", "tokens travel to experts ", "the plan says it all     ")
HIDDEN, HEADS, KV_HEADS, EXPERTS, WIDTH, LAYERS, VOCAB = 32, 4, 2, 8, 48, 2, 128

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def weights():
    rng = np.random.default_rng(7)

    def matrix(rows, cols, gain=1.0):
        return (rng.standard_normal((rows, cols)) * gain / np.sqrt(cols)).astype(np.float32)

    ones = np.ones(HIDDEN, np.float32)
    kv = HIDDEN // HEADS * KV_HEADS
    tensors = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        base = f"model.layers.{layer}."
        tensors[base + "input_layernorm.weight"] = ones
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv), ("o", HIDDEN)):
            tensors[f"{base}self_attn.{name}_proj.weight"] = matrix(rows, HIDDEN)
        tensors[base + "post_attention_layernorm.weight"] = ones
        tensors[base + "block_sparse_moe.gate.weight"] = matrix(EXPERTS, HIDDEN, gain=2.0)
        for expert in range(EXPERTS):
            for name, rows, cols in (("w1", WIDTH, HIDDEN), ("w2", HIDDEN, WIDTH), ("w3", WIDTH, HIDDEN)):
                tensors[f"{base}block_sparse_moe.experts.{expert}.{name}.weight"] = matrix(rows, cols)
    tensors["model.norm.weight"] = ones
    tensors["lm_head.weight"] = matrix(VOCAB, HIDDEN)
    return tensors


if __name__ == "__main__":
    checkpoint.write_model(HERE, CONFIG, weights())
    ids = np.array([[ord(c) for c in s[:24]] for s in SENTENCES], np.int32)
    checkpoint.write(HERE / "inputs.safetensors", {"input_ids": ids})
