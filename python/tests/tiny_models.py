"""Tiny random models of every class, made by transformers itself: config, checkpoint directory, inputs and the logits it gives.

`draw` makes everything from one seed. Fields differ from their defaults wherever a default would hide a mistake: multipliers, biases,
groups, placements, tied heads, vocabularies that no axis divides, fewer kv heads than tp. Some checkpoints are stored in shards, some as bf16 or
f16, some inputs have padding. A model whose float32 logits are far from its float64 logits routes some token by a near tie; it is drawn again.
"""

import copy
import json
import random
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.utils import logging

logging.disable_progress_bar()
# Meshes that every drawn model fits: heads, widths and experts are multiples of 4, the batch of 2.
MESHES = ("ep=2", "ep=4", "ep=8", "dp=2", "tp=2", "tp=4", "dp=2,ep=2", "ep=2,tp=2", "ep=2,tp=4", "dp=2,ep=2,tp=2")
DENSE_MESHES = ("dp=2", "dp=4", "tp=2", "tp=4", "dp=2,tp=2")


@dataclass
class Case:
    kind: str
    fields: dict
    inputs: dict  # name -> array
    logits: np.ndarray  # of transformers, in float64
    seen: np.ndarray  # [B,S] of bool: which of them are not of padding
    meshes: list

    def options(self):
        """What moe-opt wants to know about the inputs."""
        batch, seq = self.inputs["input_ids"].shape
        decoder = self.inputs.get("decoder_input_ids")
        return (f"--batch={batch}", f"--seq={seq}", *(() if decoder is None else (f"--dec-seq={decoder.shape[1]}",)), *OPTIONS.get(self.kind, ()))


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
        "rms_norm_eps": pick(1e-6, 1e-3),
        "hidden_act": pick("silu", "silu", "gelu", "gelu_pytorch_tanh", "relu"),
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


def own_head_dim(pick, fields):
    """Heads of another size than hidden / heads, or not."""
    if pick(True, False):
        fields["head_dim"] = pick(4, 8, 16)
    return fields.get("head_dim", fields["hidden_size"] // fields["num_attention_heads"])


def mixtral(pick, fields):
    fields["head_dim"] = own_head_dim(pick, fields)
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
        mlp_only_layers=pick([], [0]),
        use_sliding_window=pick(True, False),
        sliding_window=5,
    )


def qwen2_moe(pick, fields):
    qwen(pick, fields, own_head_dim(pick, fields))
    fields.update(shared_expert_intermediate_size=pick(16, 40), qkv_bias=pick(True, False), max_window_layers=pick(0, 2, 28))


def qwen3_moe(pick, fields):
    fields["head_dim"] = pick(8, 16)
    qwen(pick, fields, fields["head_dim"])
    fields.update(attention_bias=pick(True, False))


def granitemoe(pick, fields):
    scaled_rope(pick, fields, own_head_dim(pick, fields))
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
    scaled_rope(pick, fields, own_head_dim(pick, fields), ("default", "longrope"))
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
    fields["qk_rope_head_dim"] = pick(4, 8)
    scaled_rope(pick, fields, fields["qk_rope_head_dim"], ("default", "linear", "dynamic", "yarn", "longrope", "llama3"))
    rope = fields["rope_parameters"]
    if rope["rope_type"] == "yarn":
        rope |= {
            "rope_type": "yarn", "factor": pick(4.0, 40.0), "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
            "mscale": pick(0.707, 1.0), "mscale_all_dim": pick(0.0, 1.0),
        }
    fields.update(
        num_key_value_heads=fields["num_attention_heads"],
        q_lora_rank=pick(None, 12, 24),
        kv_lora_rank=pick(16, 20),
        qk_nope_head_dim=pick(8, 12),
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
    fields.update(topk_method=pick("greedy", "group_limited_greedy"), mlp_bias=pick(True, False))


def deepseek_v3(pick, fields):
    latent_attention(pick, fields)
    fields.update(norm_topk_prob=pick(True, False), rope_interleave=pick(True, False))


def gpt_oss(pick, fields):
    fields["head_dim"] = pick(8, 16)
    scaled_rope(pick, fields, fields["head_dim"])
    if fields["rope_parameters"]["rope_type"] == "yarn":
        fields["rope_parameters"] |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": pick(True, False)}
    fields.update(
        hidden_act="silu",
        intermediate_size=pick(32, 48),
        num_local_experts=8,
        num_experts_per_tok=pick(1, 2, 4),
        sliding_window=pick(3, 7),
        attention_bias=pick(True, False),
        layer_types=pick(None, ["full_attention", "sliding_attention", "full_attention"][: fields["num_hidden_layers"]]),
    )


def glm4_moe(pick, fields):
    fields["head_dim"] = pick(8, 16)
    part = pick(0.5, 1.0)
    scaled_rope(pick, fields, int(fields["head_dim"] * part))
    fields["rope_parameters"]["partial_rotary_factor"] = part
    fields.update(
        attention_bias=pick(True, False),
        use_qk_norm=pick(True, False),
        intermediate_size=pick(32, 48),
        moe_intermediate_size=pick(16, 24),
        n_routed_experts=8,
        n_shared_experts=pick(1, 2),
        num_experts_per_tok=pick(1, 3, 4),
        first_k_dense_replace=pick(0, 1),
        routed_scaling_factor=pick(1.0, 2.5),
        norm_topk_prob=pick(True, False),
        n_group=pick(1, 2, 4),
        topk_group=1,
    )
    if fields["n_group"] > 1:
        fields["topk_group"] = 2


def ernie4_5_moe(pick, fields):
    scaled_rope(pick, fields, own_head_dim(pick, fields))
    fields.update(
        use_bias=pick(True, False),
        intermediate_size=pick(32, 48),
        moe_intermediate_size=pick(16, 24),
        moe_num_experts=8,
        moe_num_shared_experts=pick(0, 1, 2),
        moe_k=pick(1, 3, 4),
        moe_layer_start_index=pick(0, 1),
        moe_layer_end_index=pick(-1, 1),
        moe_layer_interval=pick(1, 2),
        moe_norm_min=pick(1e-12, 0.7),
    )


def llama4_text(pick, fields):
    fields["head_dim"] = pick(8, 16)
    scaled_rope(pick, fields, fields["head_dim"], ("default", "llama3"))
    fields.update(
        intermediate_size=pick(32, 48),
        intermediate_size_mlp=pick(32, 64),
        num_local_experts=8,
        num_experts_per_tok=pick(1, 2),
        moe_layers=pick(None, [1]),
        interleave_moe_layer_step=pick(1, 2),
        use_qk_norm=pick(True, False),
        no_rope_layers=pick(None, [1, 0, 1][: fields["num_hidden_layers"]]),
        no_rope_layer_interval=pick(2, 4),
        attention_bias=pick(True, False),
    )


ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")


def xglm(pick, fields):
    heads = pick(4, 8)
    fields.clear()
    fields.update(
        vocab_size=pick(97, 131, 200),
        d_model=heads * pick(8, 16),
        attention_heads=heads,
        num_layers=pick(1, 3),
        ffn_dim=pick(32, 48),
        activation_function=pick(*ACTIVATIONS),
        scale_embedding=pick(True, False),
        pad_token_id=pick(None, 1, 7),  # 7: its row among the sinusoids, which is empty, is the sixth token's
        init_std=0.08,
        tie_word_embeddings=pick(True, False),
    )


def sinusoidal(pick, fields):
    """Of m2m_100 and nllb_moe."""
    encoder_heads, decoder_heads = pick(4, 8), pick(4, 8)
    fields.clear()
    fields.update(
        vocab_size=pick(97, 131, 200),
        d_model=8 * pick(8, 16),
        encoder_layers=pick(1, 2, 3),
        decoder_layers=pick(1, 2, 3),
        encoder_attention_heads=encoder_heads,
        decoder_attention_heads=decoder_heads,
        encoder_ffn_dim=pick(32, 48),
        decoder_ffn_dim=pick(32, 48),
        activation_function=pick(*ACTIVATIONS),
        scale_embedding=pick(True, False),
        pad_token_id=pick(0, 1, 7),
        init_std=0.08,
        tie_word_embeddings=pick(True, False),
    )


def m2m_100(pick, fields):
    sinusoidal(pick, fields)


def nllb_moe(pick, fields):
    sinusoidal(pick, fields)
    fields.update(
        num_experts=8,
        encoder_sparse_step=pick(0, 1, 2),
        decoder_sparse_step=pick(1, 2),
        router_bias=pick(True, False),
        expert_capacity=pick(3, 64),
        moe_eval_capacity_token_fraction=pick(0.0, 0.2, 1.0),
        normalize_router_prob_before_dropping=pick(True, False),
        batch_prioritized_routing=pick(True, False),
        moe_token_dropout=pick(0.0, 0.2),
    )


def t5_stacks(pick, fields):
    """Of mt5 and switch_transformers."""
    fields.clear()
    fields.update(
        vocab_size=pick(97, 131, 200),
        d_model=pick(32, 48, 64),
        d_kv=pick(8, 16),
        d_ff=pick(32, 48),
        num_layers=pick(2, 4),
        num_decoder_layers=pick(None, 2, 3),
        num_heads=pick(4, 8),
        relative_attention_num_buckets=pick(8, 32),
        relative_attention_max_distance=pick(20, 128),
        decoder_start_token_id=0,
        tie_word_embeddings=pick(True, False),
    )


def mt5(pick, fields):
    t5_stacks(pick, fields)
    fields.update(feed_forward_proj=pick("gated-gelu", "gated-silu", "relu", "gelu"))


def switch_transformers(pick, fields):
    t5_stacks(pick, fields)
    fields.update(
        num_experts=8,
        num_sparse_encoder_layers=pick(0, 1, 2),
        num_sparse_decoder_layers=pick(1, 2),
        expert_capacity=pick(2, 64),
        router_bias=pick(True, False),
        dense_act_fn=pick(*ACTIVATIONS),
    )


DRAW = {
    f.__name__: f
    for f in (
        deepseek_v2, deepseek_v3, ernie4_5_moe, glm4_moe, gpt_oss, granitemoe, llama4_text, m2m_100, mixtral, mt5, nllb_moe, olmoe, phimoe, qwen2_moe,
        qwen3_moe, switch_transformers, xglm,
    )
}
CLASSES = tuple(DRAW)
DENSE = ("m2m_100", "mt5", "xglm")
ENCODER_DECODERS = ("m2m_100", "mt5", "nllb_moe", "switch_transformers")
# transformers 5 counts Switch's capacity so that it never drops anything (docs/routing.md).
OPTIONS = {"switch_transformers": ("--drop-policy=none",)}


def build(kind, fields, seed):
    """The model, with norms, biases and the like moved off their initial ones and zeros."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind.replace("nllb_moe", "nllb-moe"), **fields)
    auto = AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else AutoModelForCausalLM
    chosen = {} if kind in ENCODER_DECODERS or kind == "xglm" else {"experts_implementation": "eager"}
    model = auto.from_config(config, attn_implementation="eager", **chosen).eval().float()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim == 1 and "inv_freq" not in name or "correction_bias" in name:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def forward(model, inputs, dtype):
    torch.set_default_dtype(dtype)  # of constants
    try:
        with torch.no_grad():
            logits = model.to(dtype)(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
        return logits.double().numpy()
    finally:
        torch.set_default_dtype(torch.float32)


def tokens(rng, vocab, pad, length, padded):
    """-> (ids [4,length], mask: None, or 0 for the padding at the end of each row)"""
    ids = rng.integers(0, vocab, (4, length))
    if not padded:
        return ids, None
    mask = (np.arange(length) < rng.integers(1, length + 1, (4, 1))).astype(np.int64)
    return np.where(mask, ids, pad), mask


def stacks_of(kind):
    """What the names of their inputs begin with; the last one's output is seen."""
    return ("", "decoder_") if kind in ENCODER_DECODERS else ("",)


def alike_inputs(kind, fields, pick, rng):
    """As draw_inputs: one token, in 1, 2 or 4 rows that are all alike, so that experts get either all tokens or none."""
    batch = pick(1, 2, 4)
    inputs = {f"{stack}input_ids": np.full((batch, 1), rng.integers(2, fields["vocab_size"])) for stack in stacks_of(kind)}
    return inputs, np.ones((batch, 1), bool)


def draw_inputs(kind, fields, pick, rng):
    """-> (inputs by name, seen)"""
    pad = fields.get("pad_token_id") or 0
    stacks = stacks_of(kind)
    # Where NLLB-MoE's capacity drops something, its padding takes no room; here it does (docs/routing.md).
    may_pad = fields.get("moe_eval_capacity_token_fraction", 1.0) == 1.0
    inputs = {}
    for stack in stacks:
        length = pick(8, 20, 24) if stack == stacks[0] else pick(1, 7, 8)
        ids, mask = tokens(rng, fields["vocab_size"], pad, length, may_pad and pick(True, False))
        inputs[f"{stack}input_ids"] = ids
        if mask is not None:
            inputs[f"{stack}attention_mask"] = mask
    seen = inputs.get(f"{stacks[-1]}attention_mask", np.ones_like(inputs[f"{stacks[-1]}input_ids"]))
    return inputs, seen.astype(bool)


def as_version_4(path):
    """Spells what concerns the rotary embedding as transformers 4 did."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        kind = rope.pop("rope_type")
        plain = kind == "default" and config["model_type"] != "gpt_oss"  # where nothing is said, gpt_oss is scaled
        config["rope_scaling"] = None if plain else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def save(model, pick, directory):
    """Writes the checkpoint, whole or in shards, and rounds the model's own weights to the type that they are stored in."""
    stored = pick(torch.float32, torch.float32, torch.bfloat16, torch.float16)
    copy.deepcopy(model).to(stored).save_pretrained(directory, max_shard_size=pick("5GB", "20KB"))
    if pick(True, False):
        as_version_4(directory / "config.json")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensor.to(stored))


def draw(kind, number, directory, make_inputs=draw_inputs):
    """Writes the model to `directory` -> Case."""
    chosen = random.Random(f"{kind} {number}")

    def pick(*values):
        return chosen.choice(values)

    for _ in range(20):
        fields = common(pick)
        DRAW[kind](pick, fields)
        seed = chosen.randrange(2**31)
        inputs, seen = make_inputs(kind, fields, pick, np.random.default_rng(seed))
        for old in directory.glob("model*.safetensors*"):
            old.unlink()
        model = build(kind, fields, seed)
        save(model, pick, directory)
        single, logits = forward(model, inputs, torch.float32), forward(model, inputs, torch.float64)
        if np.abs(single - logits)[seen].max() <= 3e-6 * np.abs(logits[seen]).max():
            return Case(kind, fields, inputs, logits, seen, ["", *chosen.sample(DENSE_MESHES if kind in DENSE else MESHES, 2)])
    raise AssertionError(f"{kind} {number}: no model with clear routing in 20 draws")
