"""Shows that the frequencies that the importer gives moe.rope_table are those of each scaling's published formula.

The formulas are written down here again, in float64; the importer's are rounded to float step by step.
"""

import json
import os
import re

import numpy as np
import pytest

from moira.tools import run_tool

SEED = int(os.environ.get("MOIRA_SEED", "20240611"))


def table(folder, config, length):
    """-> (frequencies, factor) of the program for sequences of this length"""
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    text = run_tool("moe-opt", path, "--batch=1", f"--seq={length}", "--compile-to=import", "-o", "-").out
    found = re.search(r"moe\.rope_table %\S+ frequencies \[([^]]*)\] times (\S+) :", text)
    return np.array([float(x) for x in found.group(1).split(",")]), float(found.group(2))


def plain(theta, dim):
    return theta ** (-np.arange(0, dim, 2) / dim)


def linear(rope, dim, length, positions):
    return plain(rope["rope_theta"], dim) / rope["factor"], 1.0


def dynamic(rope, dim, length, positions):
    stretch = rope["factor"] * max(length, positions) / positions - (rope["factor"] - 1)
    return plain(rope["rope_theta"] * stretch ** (dim / (dim - 2)), dim), 1.0


def yarn(rope, dim, length, positions):
    theta, original = rope["rope_theta"], rope["original_max_position_embeddings"]

    def pair(turns):
        return dim * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(theta))

    low, high = pair(rope.get("beta_fast", 32)), pair(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)

    def scale(m):
        return 0.1 * m * np.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0

    frequency = plain(theta, dim)
    factor = scale(1)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        factor = scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return frequency / rope["factor"] * ramp + frequency * (1 - ramp), rope.get("attention_factor", factor)


def longrope(rope, dim, length, positions):
    original = rope["original_max_position_embeddings"]
    divisors = np.array(rope["long_factor"] if length > original else rope["short_factor"])
    factor = rope.get("factor", positions / original)
    amplitude = np.sqrt(1 + np.log(factor) / np.log(original)) if factor > 1 else 1.0
    return plain(rope["rope_theta"], dim) / divisors, rope.get("attention_factor", amplitude)


def llama3(rope, dim, length, positions):
    original, low, high = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    frequency = plain(rope["rope_theta"], dim)
    turns = original * frequency / (2 * np.pi)  # within the trained length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency, 1.0


def draw(rng, kind, dim):
    original = int(rng.choice((16, 64, 4096)))
    rope = {"rope_type": kind, "rope_theta": float(rng.choice((1e4, 150000.0, 1e6)))}
    if kind != "longrope" or rng.random() < 0.5:
        rope["factor"] = float(rng.choice((1.0, 2.0, 8.0, 40.0)))
    if kind in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = original
    if kind == "yarn":
        if rng.random() < 0.5:
            rope |= {"beta_fast": float(rng.choice((8.0, 32.0))), "beta_slow": 1.0, "truncate": bool(rng.random() < 0.5)}
        if rng.random() < 0.5:
            rope |= {"mscale": float(rng.choice((0.7, 1.0))), "mscale_all_dim": float(rng.choice((0.5, 1.0)))}
    if kind in ("yarn", "longrope") and rng.random() < 0.3:
        rope["attention_factor"] = float(rng.uniform(0.5, 2))
    if kind == "longrope":
        rope |= {k: rng.uniform(1, 30, dim // 2).round(3).tolist() for k in ("short_factor", "long_factor")}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope, original


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", "llama3"])
def test_frequencies_are_those_of_the_formula(kind, tmp_path):
    print(f"seed {SEED}")
    rng = np.random.default_rng([SEED, len(kind)])
    for _ in range(6):
        dim = int(rng.choice((4, 16, 64, 128)))
        rope, original = draw(rng, kind, dim)
        positions, length = original * int(rng.choice((1, 4))), int(rng.choice((8, 100, 5000)))
        config = {
            "model_type": "mixtral", "hidden_size": 2 * dim, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
            "vocab_size": 16, "intermediate_size": 8, "num_local_experts": 2, "max_position_embeddings": positions,
        }
        if rng.random() < 0.5:  # as transformers 4 writes it
            old = {("type" if k == "rope_type" else k): v for k, v in rope.items() if k != "rope_theta"}
            config |= {"rope_theta": rope["rope_theta"], "rope_scaling": old}
        else:
            config["rope_parameters"] = rope
        got, factor = table(tmp_path, config, length)
        want, amplitude = globals()[kind](rope, dim, length, positions)
        np.testing.assert_allclose(got, want, rtol=3e-6, err_msg=f"{config} length {length}")
        np.testing.assert_allclose(factor, amplitude, rtol=1e-12, err_msg=f"{config} length {length}")
        assert (got.astype(np.float32) == got).all(), "frequencies are floats"


ROTARY = ("deepseek_v2", "deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe", "llama4_text", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")


@pytest.mark.parametrize("scaling", ["dynamic", "yarn"])
@pytest.mark.parametrize("kind", ROTARY)
def test_a_length_that_the_config_leaves_out_is_that_of_transformers(kind, scaling, tmp_path):
    """Without max_position_embeddings the length that a scaling refers to is the default of transformers' class."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": scaling, "rope_theta": 1e4, "factor": 4.0}
    if kind == "phimoe":
        rope |= {"short_mscale": 1.0, "long_mscale": 1.0}
    fields = {"num_hidden_layers": 1, "rope_parameters": rope}
    if kind in ("glm4_moe", "mixtral"):  # theirs need it
        fields["head_dim"] = 128
    if kind == "llama4_text":  # sequences of any length
        fields |= {"attention_chunk_size": None, "attn_temperature_tuning": False}
    theirs = AutoConfig.for_model(kind, **json.loads(json.dumps(fields)))
    for length in (8, 200000):
        got, _ = table(tmp_path, {"model_type": kind, **fields}, length)
        want, _ = ROPE_INIT_FUNCTIONS[scaling](theirs, "cpu", seq_len=length)
        np.testing.assert_allclose(got, want.numpy(), rtol=3e-6, err_msg=f"length {length}")
