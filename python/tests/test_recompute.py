"""Shows that values that are made again are the same values: gradients and training steps keep their bits, whatever --recompute says. And that it pays:
less is planned for activations, as much as a limit asks for.
"""

import json

import pytest

from common import GOLDEN, GOLDEN_CLASSES, ROOT, golden_options, has_experts
from moira import compile_plan, run_plan, run_tool

POLICIES = ("none", "selective", "full")
MESHES = ("", "ep=2", "dp=2,ep=2,tp=2")
PAIRS = [(kind, mesh) for kind in GOLDEN_CLASSES for mesh in MESHES if "ep=" not in mesh or has_experts(kind)]


@pytest.mark.parametrize("dtype", ("f32", "bf16"))
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1] or 'one'}")
def test_gradients_keep_their_bits(pair, dtype, tmp_path):
    kind, mesh = pair
    options = ("--task=grad", f"--dtype={dtype}", *golden_options(kind), *([f"--mesh={mesh}"] if mesh else []))
    written = []
    for policy in POLICIES:
        plan, out = tmp_path / f"{policy}.moeplan", tmp_path / f"{policy}.safetensors"
        compile_plan(GOLDEN / kind, plan, *options, f"--recompute={policy}", "--report=none")
        run_plan(plan, GOLDEN / kind, GOLDEN / kind / "io.safetensors", out)
        written.append(out.read_bytes())
    assert written[1] == written[0] and written[2] == written[0]


@pytest.mark.parametrize("mesh", ("", "dp=2,ep=2"))
def test_training_keeps_its_bits(mesh, tmp_path):
    saved = []
    for policy in POLICIES:
        plan, run = tmp_path / f"{policy}.moeplan", tmp_path / policy
        options = ("--task=train", "--dtype=bf16", *golden_options("olmoe"), *([f"--mesh={mesh}"] if mesh else []))
        compile_plan(GOLDEN / "olmoe", plan, *options, f"--recompute={policy}", "--report=none")
        files = (f"--weights={GOLDEN / 'olmoe'}", f"--inputs={GOLDEN / 'olmoe' / 'io.safetensors'}")
        finished = run_tool("moe-run", plan, *files, "--steps=3", f"--checkpoint={run}")
        assert finished.code == 0, finished
        saved.append({file.name: file.read_bytes() for file in sorted((run / "step-3").glob("rank-*"))})
    assert saved[0] and saved[1] == saved[0] and saved[2] == saved[0]


REAL = ROOT / "examples" / "olmoe-1b-7b" / "config.json"
REAL_OPTIONS = ("--task=train", "--dtype=bf16", "--batch=32", "--seq=4096", "--mesh=dp=2,ep=4", "--memory-only")


def planned(*options):
    """-> a Finished, and the bytes of a rank: (all, those besides its states, those kept for the backward pass)"""
    finished = run_tool("moe-opt", REAL, *REAL_OPTIONS, "--report=json", *options, timeout=600)
    if not finished.out:
        return finished, None
    memory = next(p for p in json.loads(finished.out)["programs"] if not p["reference"])["memory_per_rank"]
    besides = sum(arena["bytes"] for arena in memory["arenas"] if arena["role"] != "state")
    return finished, (memory["total_bytes"], besides, memory["kept_for_backward_bytes"])


@pytest.fixture(scope="module")
def real():
    """{policy: (bytes of a rank, those besides its states, those kept for the backward pass)} of OLMoE-1B-7B on eight ranks"""
    return {policy: planned(f"--recompute={policy}")[1] for policy in POLICIES}


def test_less_is_planned_at_real_size(real):
    """What is planned besides the states falls with what is kept. With `full` that is known: of 16384 tokens a rank the f32 hidden states between 16
    layers and at both ends, each layer's 8 choices (an id, a weight and a place), the bf16 operands of the head and the f32 logits; and as the last
    layer's exchange begins while the loss is being made, two times its slots, for 65536 rows from each of 4 ranks."""
    (_, none, none_kept), (_, selective, selective_kept), (_, full, full_kept) = (real[policy] for policy in POLICIES)
    want = 16384 * (17 * 2048 * 4 + 16 * 8 * 12 + 2048 * 2 + 50304 * 4) + 50304 * 2048 * 2
    assert want <= full_kept <= 1.02 * want + 2 * 4 * 65536 * 2048 * 2
    assert none - selective >= 0.95 * (none_kept - selective_kept) > 0
    assert selective - full >= 0.9 * (selective_kept - full_kept) > 0


def test_a_limit_chooses(real):
    """auto takes the first policy that fits, and says what each would need if none does."""
    totals = [real[policy][0] for policy in POLICIES]
    for limit, want in ((totals[0], totals[0]), (totals[0] - 1, totals[1]), (totals[1] - 1, totals[2])):
        finished, got = planned(f"--memory-limit={limit}")
        assert finished.code == 0 and got[0] == want, finished
    finished, _ = planned(f"--memory-limit={totals[2] - 1}")
    assert (finished.code, finished.error_ids) == (3, ["MOE-0105"])
    assert all(f"--recompute={policy}: " in finished.err for policy in POLICIES)


def test_options_are_checked(tmp_path):
    for options, problem in (
        (("--recompute=full",), "is for --task=grad and train"),
        (("--task=grad", "--recompute=auto"), "needs a --memory-limit"),
        (("--task=grad", "--recompute=some"), "none, selective, full"),
    ):
        finished = run_tool("moe-opt", GOLDEN / "olmoe", "--batch=2", "--seq=24", *options, "-o", tmp_path / "p.moeplan")
        assert finished.code == 1 and problem in finished.err, finished
