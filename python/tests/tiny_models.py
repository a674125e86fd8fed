"""Tiny random models of every class, made by transformers itself: config, checkpoint directory, inputs and the logits it gives.

`draw` makes everything from one seed. Fields differ from their defaults wherever a default would hide a mistake: multipliers, biases,
groups, placements, tied heads, vocabularies that no axis divides, fewer kv heads than tp. A model whose float32 logits are far from its float64
logits routes some token by a near tie; it is drawn again.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Meshes that every drawn model fits: heads, widths and experts are multiples of 4, the batch of 2.
MESHES = ("ep=2", "ep=4", "dp=2", "tp=2", "tp=4", "dp=2,ep=2", "ep=2,tp=2")


@dataclass
class Case:
    kind: str
    fields: dict
    input_ids: np.ndarray
    logits: np.ndarray  # of transformers, in float64
    meshes: list


def common(pick):
    heads, head_dim = pick(4, 8), pick(8, 16)
    return {
        "vocab_size": pick(97, 131, 200),
        "hidden_size": heads * head_dim,
        "num_hidden_layers": pick(2, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": pick(1, 2, 4),
        "max_position_embeddings": 64,
        "tie_word_embeddings": pick(True, False),
        "initializer_range": 0.08,
        "rope_parameters": {"rope_theta": pick(1e4, 5e5), "rope_type": "default"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }


def scaled_rope(pick, fields, head_dim, kinds=("default", "linear", "dynamic", "yarn", "longrope", "llama3")):
    """One of the scalings of rotary embedding; sequences may be longer than what the model was first trained with, 16."""
    rope = fields["rope_parameters"]
    rope["rope_type"] = kind = pick(*kinds)
    if kind != "default":
        rope["factor"] = pick(2.0, 8.0)
    if kind in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = 16
    if kind == "dynamic":
        fields["max_position_embeddings"] = 16
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [pick(1.0, 1.3) for _ in range(head_dim // 2)], "long_factor": [pick(2.0, 5.5) for _ in range(head_dim // 2)]}


def mixtral(pick, fields):
    fields["head_dim"] = pick(8, 16)
    scaled_rope(pick, fields, fields["head_dim"])
    fields.update(intermediate_size=pick(32, 48), num_local_experts=8, num_experts_per_tok=pick(1, 2, 4), sliding_window=pick(None, 5))


def olmoe(pick, fields):
    scaled_rope(pick, fields, fields["hidden_size"] // fields["num_attention_heads"])
    fields.update(
        intermediate_size=pick(16, 24),
        num_experts=8,
        num_experts_per_tok=pick(1, 3, 4),
        norm_topk_prob=pick(True, False),
        attention_bias=pick(True, False),
        clip_qkv=pick(None, 0.5),
    )


def qwen(pick, fields, head_dim):
    scaled_rope(pick, fields, head_dim)
    fields.update(
        intermediate_size=pick(32, 48),
        moe_intermediate_size=pick(16, 24),
        num_experts=8,
        num_experts_per_tok=pick(1, 3, 4),
        norm_topk_prob=pick(True, False),
        decoder_sparse_step=pick(1, 2),
    )


def qwen2_moe(pick, fields):
    qwen(pick, fields, fields["hidden_size"] // fields["num_attention_heads"])
    fields.update(shared_expert_intermediate_size=pick(16, 40), qkv_bias=pick(True, False))


def qwen3_moe(pick, fields):
    fields["head_dim"] = pick(8, 16)
    qwen(pick, fields, fields["head_dim"])
    fields.update(attention_bias=pick(True, False), mlp_only_layers=pick([], [0]))


def granitemoe(pick, fields):
    fields.update(
        intermediate_size=pick(32, 48),
        num_local_experts=8,
        num_experts_per_tok=pick(1, 2, 4),
        attention_bias=pick(True, False),
        embedding_multiplier=pick(12.0, 0.7),
        attention_multiplier=pick(0.0625, 0.3),
        residual_multiplier=0.22,
        logits_scaling=pick(6.0, 16.0),
    )


def phimoe(pick, fields):
    scaled_rope(pick, fields, fields["hidden_size"] // fields["num_attention_heads"], ("default", "longrope"))
    if fields["rope_parameters"]["rope_type"] == "longrope":
        fields["rope_parameters"] |= {"short_mscale": 1.1, "long_mscale": 1.25}
    fields.update(
        intermediate_size=pick(32, 48),
        num_local_experts=8,
        attention_bias=pick(True, False),
        lm_head_bias=pick(True, False),
        router_jitter_noise=pick(0.01, 0.2),
        sliding_window=pick(None, 5),
    )


def latent_attention(pick, fields):
    rope = fields["rope_parameters"]
    if pick(True, False):
        rope |= {
            "rope_type": "yarn", "factor": pick(4.0, 40.0), "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
            "mscale": pick(0.707, 1.0), "mscale_all_dim": pick(0.0, 1.0),
        }
    fields.update(
        num_key_value_heads=fields["num_attention_heads"],
        q_lora_rank=pick(None, 12, 24),
        kv_lora_rank=pick(16, 20),
        qk_nope_head_dim=pick(8, 12),
        qk_rope_head_dim=pick(4, 8),
        v_head_dim=pick(8, 16),
        attention_bias=pick(True, False),
        intermediate_size=pick(32, 48),
        moe_intermediate_size=pick(16, 24),
        n_routed_experts=8,
        n_shared_experts=pick(1, 2),
        num_experts_per_tok=pick(1, 3, 4),
        first_k_dense_replace=pick(0, 1),
        routed_scaling_factor=pick(1.0, 2.5),
        n_group=pick(2, 4),
        topk_group=2,
    )


def deepseek_v2(pick, fields):
    latent_attention(pick, fields)
    fields.update(topk_method=pick("greedy", "group_limited_greedy"))


def deepseek_v3(pick, fields):
    latent_attention(pick, fields)
    fields.update(norm_topk_prob=pick(True, False), rope_interleave=pick(True, False))


def gpt_oss(pick, fields):
    rope = fields["rope_parameters"]
    rope |= pick(
        {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 16},
        {"rope_type": "default"},
    )
    fields.update(
        head_dim=pick(8, 16),
        intermediate_size=pick(32, 48),
        num_local_experts=8,
        num_experts_per_tok=pick(1, 2, 4),
        sliding_window=pick(3, 7),
        attention_bias=pick(True, False),
        layer_types=pick(None, ["full_attention", "sliding_attention", "full_attention"][: fields["num_hidden_layers"]]),
    )


DRAW = {
    f.__name__: f for f in (deepseek_v2, deepseek_v3, gpt_oss, granitemoe, mixtral, olmoe, phimoe, qwen2_moe, qwen3_moe)
}
CLASSES = tuple(DRAW)


def build(kind, fields, seed):
    """The model, with norms, biases and the like moved off their initial ones and zeros."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields), attn_implementation="eager", experts_implementation="eager").eval().float()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim == 1 and "inv_freq" not in name or "correction_bias" in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def forward(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids)).logits.double().numpy()


def draw(kind, number, directory):
    """Writes the model to `directory` -> Case."""
    chosen = random.Random(f"{kind} {number}")
    for _ in range(20):
        fields = common(lambda *values: chosen.choice(values))
        DRAW[kind](lambda *values: chosen.choice(values), fields)
        seed = chosen.randrange(2**31)
        model = build(kind, fields, seed)
        ids = np.random.default_rng(seed).integers(0, fields["vocab_size"], (4, chosen.choice((8, 20, 24))))
        single = forward(model, ids)
        model.save_pretrained(directory)
        logits = forward(model.double(), ids)
        if np.abs(single - logits).max() <= 3e-6 * np.abs(logits).max():
            return Case(kind, fields, ids, logits, ["", *chosen.sample(MESHES, 2)])
    raise AssertionError(f"{kind} {number}: no model with clear routing in 20 draws")
