"""Shows that compiling is a function: the same input gives the same bytes, whatever ran before and wherever it is written."""

import pytest

from common import GOLDEN
from moira import compile_plan

COMPILES = 20


@pytest.mark.parametrize("kind, mesh", [("qwen2_moe", "dp=2,ep=2,tp=2"), ("olmoe", "ep=4")])
def test_compiles_are_byte_identical(kind, mesh, tmp_path):
    plans = set()
    for i in range(COMPILES):
        plan = tmp_path / f"plan{i}.moeplan"
        compile_plan(GOLDEN / kind, plan, "--batch=2", "--seq=24", f"--mesh={mesh}")
        plans.add(plan.read_bytes())
    assert len(plans) == 1


def test_plan_holds_no_path(tmp_path):
    folder = tmp_path / "a-telling-folder-name"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).symlink_to(GOLDEN / "mixtral" / file)
    compile_plan(folder, tmp_path / "a.moeplan", "--batch=2", "--seq=24", "--mesh=ep=2")
    compile_plan(GOLDEN / "mixtral", tmp_path / "b.moeplan", "--batch=2", "--seq=24", "--mesh=ep=2")
    plan = (tmp_path / "a.moeplan").read_bytes()
    assert b"a-telling-folder-name" not in plan
    assert plan == (tmp_path / "b.moeplan").read_bytes()
