"""Shows that the configs of well-known models are understood as they were published, by Moira alone: every field is known, and the parameters are as
many as their makers say.

test/configs/published.json has the fields as they are on the Hub (lists of rotary factors shortened to one value) and the parameters in billions; of
models with layers or heads that the config does not tell of (GLM's further tokens, mT5's own head) without these.
"""

import json

import pytest

from common import ROOT
from moira import run_tool

PUBLISHED = json.loads((ROOT / "test" / "configs" / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_alone_is_planned(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]["config"]))
    options = ("--batch=16", "--seq=512", "--dtype=bf16", "--target=sm_90", "--mesh=dp=8,tp=2", "--report=json", "--memory-only")
    done = run_tool("moe-opt", tmp_path / "config.json", *options)
    assert done.code == 0, done
    assert "stood in for" not in done.err
    assert abs(json.loads(done.out)["parameters"] / 1e9 / PUBLISHED[name]["billions"] - 1) <= 0.01
