"""Shows that the NumPy oracle is right: it reproduces the golden logits of every class."""

import numpy as np
import pytest

import oracle
from common import CLASSES, GOLDEN
from moira import checkpoint


@pytest.mark.parametrize("kind", CLASSES)
def test_oracle_reproduces_golden_logits(kind):
    config, tensors = checkpoint.read_model(GOLDEN / kind)
    io = checkpoint.read(GOLDEN / kind / "io.safetensors")
    got = oracle.forward(config, tensors, io["input_ids"])
    assert np.abs(got.logits - io["logits"]).max() <= 5e-6 * np.abs(io["logits"]).max()
    assert got.gap > 1e-6
