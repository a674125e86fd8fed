"""Shows that examples/train-3b makes a dataset of this repository's own files, byte by byte, that its model learns of such text, here a tiny one of the
same class, and that the true one is planned for a GPU.
"""

import array
import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from common import ROOT
from moira import compile_plan, run_tool

EXAMPLE = ROOT / "examples" / "train-3b"
TINY = dict(hidden_size=64, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=4, num_local_experts=4)
OPTIONS = ("--task=train", "--lr=3e-3", "--betas=0.9,0.95", "--weight-decay=0.1", "--clip-norm=1", "--aux-loss=0.01", "--schedule=constant,warmup=5")


def make(prefix, *options):
    done = subprocess.run([sys.executable, EXAMPLE / "make.py", prefix, *options], capture_output=True, text=True, check=True)
    return [int(n) for n in re.findall(r"\d+", done.stdout.removeprefix(str(prefix)))]


def test_every_file_is_a_document(tmp_path):
    tokens, files = make(tmp_path / "text")
    data, index = np.fromfile(tmp_path / "text.bin", np.uint16), (tmp_path / "text.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0" and int.from_bytes(index[9:17], "little") == 1 and index[17] == 8
    assert len(data) == tokens and (data == 256).sum() == files == int.from_bytes(index[18:26], "little")
    documents = np.split(data, np.flatnonzero(data == 256) + 1)[:-1]
    texts = {document[:-1].astype(np.uint8).tobytes() for document in documents}
    for path in ("README.md", "docs/training.md", "runtime/core/Train.cpp", "examples/train-3b/make.py"):
        assert (ROOT / path).read_bytes() in texts, path
    assert np.frombuffer(index, np.int32, files, 34).sum() == tokens
    again, fewer = make(tmp_path / "less", "--most=100000")
    assert again - fewer == 100000 and np.array_equal(np.fromfile(tmp_path / "less.bin", np.uint16)[:1000], data[:1000])


def test_a_tiny_one_learns(tmp_path):
    paragraphs = (ROOT / "LICENSE").read_bytes().split(b"\n\n")  # a text that stays as it is
    runpy.run_path(str(EXAMPLE / "make.py"))["write"](tmp_path / "text", [array.array("H", [*text, 256]) for text in paragraphs])
    config = json.loads((EXAMPLE / "config.json").read_text()) | TINY
    (tmp_path / "config.json").write_text(json.dumps(config))
    losses = {}
    for dtype in ("f32", "bf16"):
        plan, metrics = tmp_path / f"{dtype}.moeplan", tmp_path / f"{dtype}.jsonl"
        compile_plan(tmp_path / "config.json", plan, *OPTIONS, "--batch=4", "--seq=64", f"--dtype={dtype}")
        done = run_tool("moe-run", plan, "--init=1", f"--data={tmp_path / 'text'}", "--steps=40", f"--metrics={metrics}")
        assert done.code == 0, done
        losses[dtype] = np.array([json.loads(line)["ce_loss"] for line in metrics.read_text().splitlines()])
        assert abs(losses[dtype][0] - np.log(320)) < 0.2  # it knows nothing
        assert losses[dtype][-5:].mean() < losses[dtype][0] - 1.5
    # Not each step's: rows unlike those before them (a title, a rule) multiply what little two models differ by.
    apart = np.abs(losses["bf16"] - losses["f32"])
    assert apart[:10].max() < 0.01 and np.median(apart) < 0.03 and apart.mean() < 0.1, apart


def test_the_true_one_is_planned_for_a_gpu(tmp_path):
    options = (EXAMPLE / "config.json", *OPTIONS, "--batch=8", "--seq=1024", "--dtype=bf16", "--target=sm_90", "-o", tmp_path / "train.moeplan")
    planned = run_tool("moe-opt", *options, "--report=json")
    assert planned.code == 0, planned
    report = json.loads(planned.out)
    assert 3.2e9 < report["parameters"] < 3.4e9


@pytest.mark.parametrize("begin", (("--init=1",), ("--resume", "--checkpoint=run")))
def test_what_is_missing_is_said_once(begin, tmp_path):
    """Weights that nobody asked for are not looked for."""
    config = json.loads((EXAMPLE / "config.json").read_text()) | TINY
    (tmp_path / "config.json").write_text(json.dumps(config))
    compile_plan(tmp_path / "config.json", tmp_path / "p.moeplan", *OPTIONS, "--batch=4", "--seq=64")
    refused = run_tool("moe-run", tmp_path / "p.moeplan", *begin, f"--data={tmp_path / 'text'}", "--steps=2")
    assert refused.code == 2 and refused.error_ids == ["MOE-0106"] and "text.idx" in refused.err, refused
