"""Shows that real, large models compile quickly from their configs alone and that a plan does not grow with the number of ranks."""

import subprocess
import sys
import time

from common import ROOT
from moira import inspect_plan
from moira.tools import program

CONFIGS = ROOT / "test" / "configs"
SECONDS, GIBIBYTES = 10, 1.5


# A process counts, as its own peak, what the one that started it held then: this one holds little, and the tests that ran before may not have.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def compile_measured(model, plan, mesh, batch):
    """-> (seconds, peak resident bytes, report) of one compile."""
    command = [program("moe-opt"), CONFIGS / model / "config.json", f"--batch={batch}", "--seq=4096", "--dtype=bf16", "--target=sm_90", f"--mesh={mesh}", "-o", plan]
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - start, int(done.stdout) * 1024, done.stderr


def test_qwen3_235b_compiles_for_256_and_4096_ranks(tmp_path):
    sizes = []
    for mesh, batch in (("dp=8,ep=16,tp=2", 128), ("dp=128,ep=16,tp=2", 2048)):
        plan = tmp_path / f"{batch}.moeplan"
        seconds, peak, report = compile_measured("qwen3-235b-a22b", plan, mesh, batch)
        print(f"{mesh}: {seconds:.2f} s, {peak / 2**20:.0f} MiB, plan {plan.stat().st_size} bytes\n{report}")
        assert seconds <= SECONDS
        assert peak <= GIBIBYTES * 2**30
        assert len(report.splitlines()) <= 25, "the report is at most 25 lines"
        summary = inspect_plan(plan)
        # Published: 235 billion parameters, 22 billion of them active. Counted by hand from the config.
        assert (summary["parameters"], summary["active_parameters"]) == (235_093_634_560, 22_190_763_520)
        sizes.append(plan.stat().st_size)
    assert abs(sizes[0] - sizes[1]) <= 64, f"the plan grows with the ranks: {sizes}"


def test_deepseek_v3_plans_for_2048_ranks(tmp_path):
    """Its published weights are fp8, which its config says; planned is bf16."""
    attention = 7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168
    expert, dense, router = 3 * 7168 * 2048, 3 * 7168 * 18432, 256 * 7168 + 256
    outside = 2 * 129280 * 7168 + 7168 + 61 * (attention + 2 * 7168) + 3 * dense + 58 * (router + expert)  # one shared expert
    sizes = []
    for mesh in ("dp=32,ep=64", "dp=16,ep=64,tp=2", "dp=1,ep=256,tp=8", "dp=4,ep=256,tp=2"):
        plan = tmp_path / "p.moeplan"
        seconds, peak, report = compile_measured("deepseek-v3", plan, mesh, 2048)
        print(f"{mesh}: {seconds:.2f} s, {peak / 2**20:.0f} MiB, plan {plan.stat().st_size} bytes\n{report}")
        assert seconds <= SECONDS
        assert peak <= GIBIBYTES * 2**30
        summary = inspect_plan(plan)
        # Published: 671 billion parameters, 37 billion of them active.
        assert (summary["parameters"], summary["active_parameters"]) == (outside + 58 * 256 * expert, outside + 58 * 8 * expert)
        sizes.append(summary["ranks"])
    assert sizes == [2048] * 4
