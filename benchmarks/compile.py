#!/usr/bin/env python3
"""Measures how long the compiler takes for large published models, phase by phase, and prints a table: medians of --rounds compiles each.

    benchmarks/compile.py [--rounds=5] [--bin=build/bin]

From config.json alone, as no compile reads weights. Needs Python 3 only.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..")
CASES = [
    ("OLMoE-1B-7B, generate, one rank", "examples/olmoe-1b-7b", ["--task=generate", "--batch=1", "--seq=128", "--target=host"]),
    ("OLMoE-1B-7B, gradients, dp=2,ep=4", "examples/olmoe-1b-7b", ["--task=grad", "--batch=8", "--seq=2048", "--mesh=dp=2,ep=4", "--target=host"]),
    ("Qwen3-30B-A3B, forward, ep=8", "examples/qwen3-30b-a3b", ["--batch=8", "--seq=4096", "--mesh=ep=8", "--target=sm_90"]),
    ("Qwen3-30B-A3B, generate, one rank", "examples/qwen3-30b-a3b", ["--task=generate", "--batch=8", "--seq=128", "--target=sm_90"]),
    ("DeepSeek-V3 671B, forward, dp=32,ep=64", "test/configs/deepseek-v3", ["--batch=2048", "--seq=4096", "--mesh=dp=32,ep=64", "--target=sm_90"]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "bin"))
    options = parser.parse_args()
    times = [{} for _ in CASES]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for (name, model, flags), table in zip(CASES, times):
                done = subprocess.run([os.path.join(options.bin, "moe-opt"), os.path.join(ROOT, model, "config.json"), "--dtype=bf16", *flags,
                                       "--report=none", "--timing", "-o", os.path.join(folder, "a.moeplan")], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{name}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
                for line in done.stderr.splitlines():
                    step, seconds, _ = line.split()
                    table.setdefault(step, []).append(float(seconds))
    steps = list(times[0])
    print(f"{'milliseconds':40}", *(f"{step:>9}" for step in steps))
    for (name, _, _), table in zip(CASES, times):
        print(f"{name:40}", *(f"{statistics.median(table[step]) * 1e3:9.0f}" for step in steps))


if __name__ == "__main__":
    main()
