"""Shows that states in the memory of a device's host change where things lie and nothing else. A plan for the host is made with the pass that GPUs' plans
get (--plan-offload on the IR of phase localize) and run: moves are then copies from memory to memory, and all bits must be those of the plan without it.

Plans for GPUs are compiled and inspected: what lies where, and how many bytes move.
"""

import json

import pytest

from common import GOLDEN, golden_options
from moira import checkpoint, run_tool
from test_train import ADAMW, error, losses, tolerance, train
from test_training_failures import script
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


def inspected(folder, *options):
    """The summary of a GPU's plan; no GPU is needed to make one."""
    plan = folder / "gpu.moeplan"
    gpu = ("--task=train", "--target=sm_90", "--report=none")
    made = run_tool("moe-opt", GOLDEN / "olmoe", *golden_options("olmoe"), *gpu, *options, "-o", plan)
    assert made.code == 0, made
    return summary(plan)


def states_of(program):
    return {c["role"]: (c["bytes"], c["host_bytes"]) for c in program["memory_per_rank"]["states"]}


@pytest.mark.parametrize("dtype", ("f32", "bf16"))
@pytest.mark.parametrize("mesh", ("", "--mesh=dp=2,ep=2"))
def test_what_moves_is_what_is_there(mesh, dtype, tmp_path):
    """Of n bytes of weights, gradients move n to the host and weights n to the device, half of what is rounded; all states are the host's."""
    options = (f"--dtype={dtype}", *([mesh, "--zero=3"] if mesh else []))
    plain = inspected(tmp_path, *options)
    assert plain["memory_per_rank"]["host_bytes"] == 0 and plain["moves"] == {"to_host_bytes": 0, "to_device_bytes": 0}
    offloaded = inspected(tmp_path, *options, "--offload=optimizer")
    whole = states_of(plain)
    assert states_of(offloaded) == {role: (held, held) for role, (held, _) in whole.items()}
    weights = whole["weights"][0]
    # Beside them the rate, the step and the factor.
    assert 0 <= offloaded["moves"]["to_host_bytes"] - weights <= 64
    # Norms, the router and the table are taken as they are.
    wide = sum(w["local_bytes"] for w in offloaded["weights"] if w["role"] == "weights" and ("norm" in w["name"] or "gate.w" in w["name"] or "embed" in w["name"]))
    moved = weights if dtype == "f32" else wide + (weights - wide) // 2
    assert offloaded["moves"]["to_device_bytes"] == moved
    assert offloaded["memory_per_rank"]["total_bytes"] < plain["memory_per_rank"]["total_bytes"] - whole["optimizer"][0]
    twice = inspected(tmp_path, *options, "--offload=optimizer+params")
    assert states_of(twice) == states_of(offloaded)
    assert moved < twice["moves"]["to_device_bytes"] <= 2 * moved


def test_the_limit_is_the_devices(tmp_path):
    """With offload a model that does not fit without it does."""
    need = {what: inspected(tmp_path, f"--offload={what}")["memory_per_rank"]["total_bytes"] for what in ("none", "optimizer")}
    limit = (need["none"] + need["optimizer"]) // 2
    gpu = ("--task=train", "--target=sm_90", f"--memory-limit={limit}", "--recompute=none", "-o", tmp_path / "p.moeplan")
    for what, code in (("none", 3), ("optimizer", 0)):
        made = run_tool("moe-opt", GOLDEN / "olmoe", *golden_options("olmoe"), *gpu, f"--offload={what}")
        assert made.code == code, made


@pytest.mark.parametrize("stage", (1, 2))
def test_params_on_the_host_are_not_gathered_into(stage, tmp_path):
    options = ("--task=train", "--mesh=dp=2", f"--zero={stage}", "--offload=optimizer+params", "-o", tmp_path / "p.moeplan")
    refused = run_tool("moe-opt", GOLDEN / "olmoe", *golden_options("olmoe"), *options)
    assert refused.code == 1 and refused.error_ids == ["MOE-0102"] and "--zero=3" in refused.err


def test_adafactor_is_refused(tmp_path):
    options = ("--task=train", "--optimizer=adafactor", "--offload=optimizer", "-o", tmp_path / "p.moeplan")
    refused = run_tool("moe-opt", GOLDEN / "olmoe", *golden_options("olmoe"), *options)
    assert refused.code == 1 and refused.error_ids == ["MOE-0102"]


def test_killed_runs_go_on_to_the_bit(tmp_path):
    plan = planned(localized("olmoe", tmp_path, "--mesh=dp=2,ep=2", "--zero=3"), "optimizer+params")
    files = (f"--weights={GOLDEN / 'olmoe'}", f"--inputs={GOLDEN / 'olmoe' / 'io.safetensors'}")
    kills = ("--launchers=threads,processes", "--count=4", f"--folder={tmp_path}", "--window=0.3", "--save-every=10")
    said = script("check-resume.py", plan, *files, *kills)
    assert "4 of 4 as promised" in said, said
