"""Shows that what benchmarks/gpu times beside each other computes the same, forward and backward, and that its tables say what was measured."""

import subprocess
import sys
import xml.etree.ElementTree as xml
from argparse import Namespace

import numpy as np
import pytest
import torch

from common import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))
import generate  # noqa: E402
import layer  # noqa: E402
import measure  # noqa: E402
import model  # noqa: E402
import pieces  # noqa: E402
import report  # noqa: E402

from moira.runtime import Session  # noqa: E402

SHAPE = (48, 32, 16, 8, 2)


def difference(ours, theirs):
    ours, theirs = torch.from_numpy(ours).double().flatten(), theirs.detach().double().flatten()
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("mode", ["both", layer.WIDE])
@pytest.mark.parametrize("zipf", [False, True])
def test_a_layer_and_its_gradients_are_the_peers(tmp_path, zipf, mode):
    plan, numbers = tmp_path / "layer.moeplan", layer.Numbers(SHAPE, zipf, device="cpu")
    layer.compile_layer(SHAPE, mode, plan, target="host")
    with Session(plan) as session:
        numbers.write(session)
        outputs = session.forward()
    leaves = [tensor.requires_grad_() for tensor in (numbers.x, *numbers.layers[0])]
    y = layer.make_peer()(*leaves, numbers.k, exact=True)
    y.backward(numbers.cotangent)
    assert difference(outputs.pop("y"), y) < 1e-2
    assert len(outputs) == len(leaves)
    for name, leaf in zip(("x", "router0", "bias0", "up0", "down0"), leaves):
        assert difference(outputs[f"grad.{name}"], leaf.grad) < 1e-2, name


def test_layers_one_behind_the_other_are_the_peers(tmp_path):
    shape = (3, *SHAPE[1:])
    plan, numbers = tmp_path / "layers.moeplan", layer.Numbers(shape, zipf=False, layers=3, device="cpu")
    layer.compile_layer(shape, "forward", plan, target="host", layers=3)
    with Session(plan) as session:
        numbers.write(session)
        outputs = session.forward()
    for i, (x, tensors) in enumerate(zip(numbers.tokens, numbers.layers)):
        wanted = layer.make_peer()(x, *tensors, numbers.k, exact=True)
        assert 0.2 < float(wanted.float().std()) < 5
        assert difference(outputs[layer.numbered("y", i)], wanted) < 1e-2


SMALL = {
    "attention": pieces.attention(64, "forward", heads=8, kv=2, head=16, batch=2),
    "attention and gradients": pieces.attention(64, "both", heads=8, kv=2, head=16, batch=2),
    "rms_norm": pieces.rms_norm(32, 64),
    "silu-mul": pieces.silu_mul(32, 64),
    "rope": pieces.rope(32, 4, 16),
    "cast": pieces.cast(32, 64),
}


def run_piece(piece, folder):
    """Its random tensors, and what our plan makes of them."""
    pieces.compile_piece(piece, folder / "piece.moeplan", target="host")
    with Session(folder / "piece.moeplan") as session:
        tensors = pieces.draw(session, "cpu")
        for state, tensor in tensors.items():
            session.write(state, tensor.data_ptr())
        return tensors, session.forward(piece.inputs)


@pytest.mark.parametrize("name", SMALL)
def test_pieces_are_the_peers(tmp_path, name):
    piece = SMALL[name]
    tensors, outputs = run_piece(piece, tmp_path)
    assert difference(outputs["y"], piece.peer(tensors, piece.mode, fast=False)()) < 1e-3
    assert len(outputs) == (1 + len(piece.tensors) if piece.mode == "both" else 1)


def test_attention_gives_the_gradients_in_bf16(tmp_path):
    tensors, outputs = run_piece(SMALL["attention and gradients"], tmp_path)
    leaves = {name: tensors[name].float().requires_grad_() for name in "qkv"}
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves.values())
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    y.backward(tensors["d_y"].float().transpose(1, 2))
    for name, leaf in leaves.items():
        made = outputs[f"grad.{name}"]
        assert difference(made, leaf.grad) < 4e-3
        assert np.array_equal(made, torch.from_numpy(made).bfloat16().float().numpy())


def test_an_update_is_a_step_of_training(tmp_path):
    piece = pieces.adamw(8192)
    pieces.compile_piece(piece, tmp_path / "piece.moeplan", target="host")
    with Session(tmp_path / "piece.moeplan") as session:
        assert [state.name for state in session.states] == list(piece.tensors)
        assert len(session.steps(piece.inputs, 3)) == 3


class OneRun:
    """A clock that lets everyone run once."""

    budget = 0

    def median(self, run):
        run()
        return 1.0


@pytest.mark.parametrize("shape", list(model.MODELS))
def test_a_model_is_the_peers(tmp_path, monkeypatch, shape):
    """A smaller one of the same class: the loss before training, or logits, and a step of everyone."""
    small = {"vocab_size": 96, "hidden_size": 32, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 16, "intermediate_size": 16,
             "num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1}
    folder, _, task, _, _, *more = model.MODELS[shape]
    monkeypatch.setitem(model.MODELS, shape, (folder, 2, task, 2, 16, *more))
    row = model.Row(shape, device="cpu")
    row.config |= {key: value for key, value in small.items() if key in row.config or key == "vocab_size"}
    row.compile(tmp_path / row.plan, target="host")
    with row.contestants(tmp_path / row.plan, OneRun(), Namespace(peers="eager", peers_only=False)) as (contestants, notes):
        assert list(contestants) == ["moira", "transformers eager"]
        assert all(time_of() > 0 for time_of in contestants.values())
    assert notes["difference"] < 0.1  # roundings of bf16


def test_generation_is_the_peers(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "PROMPT", 16)
    monkeypatch.setattr(generate, "NEW", 6)
    small = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 16, "num_experts": 8,
             "num_experts_per_tok": 2, "num_hidden_layers": 2, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1}
    row = generate.Row(2, model.config_of("olmoe-1b-7b") | small, device="cpu")
    row.compile(tmp_path / row.plan, target="host")
    for alone in (False, True):
        with row.contestants(tmp_path / row.plan, OneRun(), Namespace(peers="eager", peers_only=alone)) as (contestants, notes):
            assert list(contestants) == ["transformers eager"] if alone else ["moira", "transformers eager"]
            assert all(time_of() > 0 for time_of in contestants.values())
            # Of four tokens; where two logits are nearly the same, bf16 may choose either.
            assert alone or notes["difference"] <= 0.5


def test_reports_say_what_was_measured(tmp_path):
    common = {"notes": {}, "device": "GPU", "torch": "2", "dense_flops": 8e11, "copy_bytes": 4e9}
    rows = [
        {"title": "one", "case": "layer", "flops": 4e12, "bytes": None, "goal": {"ratio": 0.63, "ahead": 1.25}, **common,
         "times": {"dense": [1.0, 9.0, 1.0], "copy": [1.0] * 3, "moira": [8.0, 8.0, 80.0], "peer": [10.0, 10.0, 10.0]}},
        {"title": "one zipf", "case": "layer", "flops": 4e12, "bytes": None, "goal": {"ahead": 1.2}, **common,
         "times": {"dense": [1.0] * 3, "copy": [1.0] * 3, "moira": [8.8] * 3, "peer": [10.0] * 3}, "notes": {"kernels": {"moira": [(0.75, 2.0, "void ns::product<1>(int)")]}, "clocks": {"dense": [1500, 699.6], "moira": None}}},
        {"title": "two", "case": "decode", "flops": None, "bytes": 1e8, "goal": {"ratio": 0.5}, **common,
         "times": {"dense": [1.0] * 3, "copy": [1.0] * 3, "moira": [0.05] * 3}},
    ]
    assert report.figures(rows[0])["moira"] == (8.0, 500.0, pytest.approx(0.625))
    assert report.figures(rows[2])["moira"] == (0.05, pytest.approx(2.0), pytest.approx(0.5))
    report.write(rows, tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    subprocess.run([sys.executable, report.__file__, tmp_path / "again", tmp_path / "gpu.json"], check=True)
    assert (tmp_path / "again" / "gpu.md").read_text() == text
    assert "| one | 800 | 8.000 ms, 500 (0.62) | 10.000 ms, 400 (0.50) | 1.25 |" in text
    assert "| two | 4.00 | 50.0 µs, 2.00 (0.50) | - |" in text
    assert text.split("## Below the goals")[1].strip().splitlines() == [
        "* one: ratio 0.62 of 0.63",
        "* one zipf: 1.14 times as fast as the best peer, of 1.20; 1.10 times as long as with balanced loads. ns::product<1> 75 %. dense at 1500 MHz, 700 W",
    ]
    bars = [e for e in xml.parse(tmp_path / "gpu.svg").iter() if e.tag.endswith("rect") and e.attrib["height"] not in ("12", "100%")]
    np.testing.assert_allclose([float(e.attrib["height"]) for e in bars], [150, 120, 136.4, 120, 120], atol=0.1)


def test_clocks_are_those_of_the_later_half_of_the_samples():
    assert measure.middle_of(["1980, 120.5", "1400, 690", "[N/A], 700", "1300, 700", "1200, 698", "12"]) == (1250, 699)
    assert measure.middle_of(["[N/A], [N/A]"]) is None


def test_another_contestant_begins_each_round():
    assert [measure.turns(["a", "b", "c"], i) for i in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]
