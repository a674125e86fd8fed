"""Shows that an encoder-decoder's two stacks are split each for itself, and that padding of the encoder's input changes nothing.

Held against the goldens: a decoder does not see later tokens, so fewer decoder tokens give the first logits; masked padding before or behind
the encoder's tokens gives the same logits, because positions do not count it (m2m_100, nllb_moe) or only distances matter (mt5, switch_transformers).
"""

import json

import numpy as np
import pytest

from common import GOLDEN, GOLDEN_CLASSES, has_experts, relative_error
from moira import checkpoint, compile_plan, run_plan

KINDS = [kind for kind in GOLDEN_CLASSES if json.loads((GOLDEN / kind / "config.json").read_text()).get("is_encoder_decoder")]
# Batch 2 and ep=4: the encoder's 24 tokens are cut, a decoder's 7 are not, 8 are.
MESHES = ("", "ep=4", "dp=2,tp=2", "ep=2,tp=2")


def run(kind, inputs, mesh, tmp_path):
    checkpoint.write(tmp_path / "in.safetensors", inputs)
    lengths = (f"--seq={inputs['input_ids'].shape[1]}", f"--dec-seq={inputs['decoder_input_ids'].shape[1]}")
    compile_plan(GOLDEN / kind, tmp_path / "p.moeplan", "--batch=2", *lengths, *([f"--mesh={mesh}"] if mesh else []))
    run_plan(tmp_path / "p.moeplan", GOLDEN / kind, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    return checkpoint.read(tmp_path / "out.safetensors")["logits"]


def pairs():
    return [(kind, mesh) for kind in KINDS for mesh in MESHES if "ep=" not in mesh or has_experts(kind)]


@pytest.mark.parametrize("kind,mesh", pairs())
@pytest.mark.parametrize("length", (1, 7, 8))
def test_fewer_decoder_tokens(kind, mesh, length, tmp_path):
    golden = checkpoint.read(GOLDEN / kind / "io.safetensors")
    inputs = {"input_ids": golden["input_ids"], "decoder_input_ids": golden["decoder_input_ids"][:, :length].copy()}
    assert relative_error(run(kind, inputs, mesh, tmp_path), golden["logits"][:, :length]) <= 1e-5


@pytest.mark.parametrize("kind,mesh", pairs())
@pytest.mark.parametrize("side", ("before", "behind"))
def test_padding_changes_nothing(kind, mesh, side, tmp_path):
    golden = checkpoint.read(GOLDEN / kind / "io.safetensors")
    pad = json.loads((GOLDEN / kind / "config.json").read_text())["pad_token_id"]
    ids, more = golden["input_ids"], np.full((2, 5), pad, np.int64)
    ones, zeros = np.ones_like(ids), np.zeros_like(more)
    inputs = {
        "input_ids": np.concatenate([more, ids] if side == "before" else [ids, more], axis=1),
        "attention_mask": np.concatenate([zeros, ones] if side == "before" else [ones, zeros], axis=1),
        "decoder_input_ids": golden["decoder_input_ids"],
    }
    assert relative_error(run(kind, inputs, mesh, tmp_path), golden["logits"]) <= 1e-5
