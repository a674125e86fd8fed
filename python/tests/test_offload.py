"""Shows that states in the memory of a device's host change where things lie and nothing else. A plan for the host is made with the pass that GPUs' plans
get (--plan-offload on the IR of phase localize) and run: moves are then copies from memory to memory, and all bits must be those of the plan without it.

Plans for GPUs are compiled and inspected: what lies where, and how many bytes move.
"""

import json

import pytest

from common import GOLDEN, golden_options
from moira import checkpoint, run_tool
from test_train import ADAMW, error, losses, tolerance, train
from test_zero import KINDS, assert_same, states

WHAT = ("optimizer", "optimizer+params")


def localized(kind, folder, *options):
    """The IR of phase localize, for a batch of the golden inputs."""
    file = folder / "localized.mlir"
    optimizer = ("--task=train",) if any(option.startswith("--optimizer=") for option in options) else ADAMW
    made = run_tool("moe-opt", GOLDEN / kind, *golden_options(kind), *optimizer, *options, "--compile-to=localize", "-o", file)
    assert made.code == 0, made
    return file


def planned(ir, what=None):
    """The plan of localized IR for the host, with states placed as `what` says."""
    if what:
        placed = ir.with_name(f"{what}.mlir")
        made = run_tool("moe-opt", ir, f"--plan-offload=states={what}", "--mlir-print-debuginfo", "-o", placed)
        assert made.code == 0, made
        ir = placed
    plan = ir.with_suffix(".moeplan")
    made = run_tool("moe-opt", ir, "--compile-from=localize", "--report=none", "-o", plan)
    assert made.code == 0, made
    return plan


def trained(kind, plan, steps=3, *options):
    """-> (losses, states) after some steps"""
    run = plan.with_suffix(".run")
    found = train(kind, plan, plan.with_suffix(".jsonl"), f"--steps={steps}", f"--checkpoint={run}", *options)
    return losses(found), states(run / f"step-{steps}")


def assert_nothing_changes(kind, folder, *options, steps=3):
    ir = localized(kind, folder, *options)
    want_losses, want = trained(kind, planned(ir), steps)
    for what in WHAT:
        plan = planned(ir, what)
        program = summary(plan)
        assert program["memory_per_rank"]["host_bytes"] > 0 and program["moves"]["to_host_bytes"] > 0
        got_losses, got = trained(kind, plan, steps)
        assert (got_losses == want_losses).all()
        assert_same(got, want)


def summary(plan):
    finished = run_tool("moe-inspect", plan, "--json")
    assert finished.code == 0, finished
    return next(p for p in json.loads(finished.out)["programs"] if not p["reference"])


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("mesh", ("", "ep=2", "dp=2,ep=2", "ep=2,tp=2"))
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_the_same(kind, mesh, stage, tmp_path):
    # With a bound of one row every first step is repeated: what was updated too early would show.
    on_mesh = (f"--mesh={mesh}", f"--zero={stage}", "--ragged-bound=1") if mesh else (f"--zero={stage}",)
    assert_nothing_changes(kind, tmp_path, *on_mesh)


@pytest.mark.parametrize("stage", (0, 2, 3))
@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_with_clipping(kind, stage, tmp_path):
    """The host rounds weights as the device would."""
    assert_nothing_changes(kind, tmp_path, "--mesh=dp=2,ep=2", f"--zero={stage}", "--dtype=bf16", "--clip-norm=0.5")


@pytest.mark.parametrize("stage", (0, 1, 2, 3))
@pytest.mark.parametrize("kind", KINDS)
def test_in_micro_batches(kind, stage, tmp_path):
    """Where an update takes a sum as it is, the sum lies on the host."""
    options = ("--mesh=ep=2,tp=2", "--micro-batches=2", "--clip-norm=0.5", "--dtype=bf16", f"--zero={stage}")
    assert_nothing_changes(kind, tmp_path, *options)


@pytest.mark.parametrize("options", (("--optimizer=sgd", "--momentum=0.9"), ("--optimizer=sgd",), ("--recompute=full",)), ids=" ".join)
def test_other_optimizers_and_recomputation(options, tmp_path):
    assert_nothing_changes("olmoe", tmp_path, "--mesh=dp=2,ep=2", "--zero=3", *options)


def test_golden_trajectory(tmp_path):
    want = checkpoint.read(GOLDEN / "olmoe" / "io.safetensors")["adamw_losses"]
    ir = localized("olmoe", tmp_path, "--mesh=dp=2,ep=2", "--zero=3")
    for what in WHAT:
        assert error(trained("olmoe", planned(ir, what), 10)[0], want) <= tolerance("olmoe")


def test_checkpoints_go_from_one_placement_to_another(tmp_path):
    ir = localized("olmoe", tmp_path, "--mesh=dp=2,ep=2", "--zero=3", "--dtype=bf16")
    plans = [planned(ir, what) for what in (None, *WHAT)]
    want = trained("olmoe", plans[0], 4)[1]
    for i, plan in enumerate((plans[1], plans[0], plans[2], plans[1])):
        options = (f"--steps={i + 1}", f"--checkpoint={tmp_path}/run", *(["--resume"] if i else []))
        train("olmoe", plan, tmp_path / "m.jsonl", *options)
    assert_same(states(tmp_path / "run" / "step-4"), want)
