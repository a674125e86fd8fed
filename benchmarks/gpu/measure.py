#!/usr/bin/env python3
"""Measures Moira on one GPU beside PyTorch, in one process, in turns, and writes a table and a plot.

    PYTHONPATH=python benchmarks/gpu/measure.py [--only=layer,decode] [--rows=B2,B3] [--rounds=5] [--peers=eager,compiled] [--out=FOLDER]

Each round times, one after the other and each time another one first, the dense product of 8192 x 8192 x 8192 in bf16 (torch), a device copy, our plan
and every peer. A figure is the median over the rounds; ratios are to the dense product's or the copy's median of the same rounds.

    layer     a MoE layer (layer.py), forward, and forward + backward, with balanced and with skewed loads of experts ("zipf")
    model     whole models beside transformers (model.py): a training step of four layers of Qwen3-30B-A3B, OLMoE-1B-7B forward
    generate  steps of greedy generation by OLMoE-1B-7B beside transformers (generate.py)
    decode    the same layer for few tokens, forward, each contestant in CUDA graphs (few_tokens.py)
    pieces    attention beside cuDNN's, AdamW, and generated kernels beside torch.compile's (pieces.py)

Plans are compiled when they are not in --plans; where there is no compiler, bring them: --compile-only writes them anywhere. Needs NumPy,
PyTorch with CUDA, the programs and libraries of a build with CUDA (moira.tools and moira.runtime find them).
"""

import argparse
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import few_tokens
import generate
import layer
import model
import pieces
import report

CASES = {"layer": layer, "decode": few_tokens, "model": model, "generate": generate, "pieces": pieces}
DENSE = 8192
COPY_BYTES = 2**32


class Clock:
    """Times of work that torch puts on the device."""

    def __init__(self, budget):
        self.budget = budget  # milliseconds that one measurement takes

    def median(self, run):
        """Milliseconds of run(), after it has been warmed up: median of as many as the budget allows, put on the device without waiting."""
        import torch

        probe = self._times(run, 1)[0]
        torch.cuda.synchronize()
        return statistics.median(self._times(run, max(3, min(1000, int(self.budget / max(probe, 1e-3))))))

    @staticmethod
    def _times(run, count):
        import torch

        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in events:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


def anchors():
    """{name: function}: what ratios are to."""
    import torch

    a, b = (torch.randn(DENSE, DENSE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(COPY_BYTES // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return {"dense": lambda: a @ b, "copy": lambda: target.copy_(source)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="cases, of " + ",".join(CASES))
    parser.add_argument("--rows", help="rows of the cases, such as B2,B3 of layer or Mixtral-8 of decode; default all")
    parser.add_argument("--modes", default="forward,both", help="of layer; also both-f32, with weights' gradients in f32")
    parser.add_argument("--loads", default="balanced,zipf", help="of layer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60, help="milliseconds that each contestant runs in a round")
    parser.add_argument("--peers", default="eager,compiled,grouped,tuned", help="PyTorch as it is, under torch.compile, the same with experts "
                        "by grouped_mm (generate), and with max-autotune (layer, decode)")
    parser.add_argument("--plans", help="a folder of plans; default a temporary one")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--peers-only", action="store_true", help="leave ours out of whole models (model, generate) and time nothing: several such processes at "
                        "once compile the peers into the same TORCHINDUCTOR_CACHE_DIR for the run that counts")
    parser.add_argument("--profile", action="store_true", help="also the kernels of every contestant's steps, by torch's profiler, and the card's clock and power meanwhile")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no row after so many")
    parser.add_argument("--out", default=".", help="where gpu.md, gpu.json and gpu.svg go")
    options = parser.parse_args()
    began = time.time()
    wanted = options.rows.split(",") if options.rows else None
    rows = [row for name in options.only.split(",") for row in CASES[name].rows(options) if not wanted or row.shape in wanted]
    if not rows:
        parser.error(f"no row of {options.only} is called {options.rows}")
    with tempfile.TemporaryDirectory() as folder:
        plans = Path(options.plans or folder)
        plans.mkdir(parents=True, exist_ok=True)
        for row in rows:
            if not (plans / row.plan).exists():
                row.compile(plans / row.plan)
        if options.compile_only:
            return
        measured, failed, clock, fixed = [], [], Clock(options.budget), {} if options.peers_only else anchors()
        for row in rows:
            if time.time() - began > options.seconds:
                print(f"no time for {row.title}", file=sys.stderr)
                continue
            try:
                found = measure(row, plans, clock, fixed, options)
            except Exception as error:  # the others are worth having
                failed.append(f"{row.title}: {type(error).__name__}: {error}")
                print(failed[-1], file=sys.stderr)
                continue
            if options.peers_only:
                continue
            measured.append(found)
            print(report.line(found), flush=True)
            report.write(measured, Path(options.out))
    if measured:
        print((Path(options.out) / "gpu.md").read_text())
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


def kernels_of(time_of):
    """[(share of the device's time, microseconds a launch, kernel)] while a contestant is timed, by torch's profiler, largest share first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        time_of()
        torch.cuda.synchronize()
    found = [(event.self_device_time_total, event.count, event.key) for event in profiler.key_averages() if event.self_device_time_total]
    total = sum(time for time, _, _ in found)
    return sorted([(time / total, time / count, name) for time, count, name in found], reverse=True)


def clock_of(time_of, seconds=0.4):
    """(MHz of the multiprocessors, watts) while a contestant runs, by nvidia-smi: medians of the later half of some time; None where it cannot say.
    Apart from the rounds that are timed, as asking takes the driver's time."""
    import torch

    if not shutil.which("nvidia-smi"):
        return None
    card = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
    asked = subprocess.Popen(["nvidia-smi", card, "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits", "--loop-ms=20"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time_of()
    finally:
        asked.terminate()
    return middle_of(asked.communicate()[0].splitlines())


def middle_of(samples):
    """The medians of the later half of lines `MHz, watts`; None without whole ones."""
    values = []
    for sample in samples:
        try:
            mhz, watts = map(float, sample.split(","))
        except ValueError:  # a line cut off, or a value that the driver does not have
            continue
        values.append((mhz, watts))
    later = values[len(values) // 2 :]
    return tuple(statistics.median(column) for column in zip(*later)) if later else None


def turns(names, i):
    """Who runs after whom in round i: another one begins each time, as a card that its power limits is slower behind one that heats it."""
    first = i % len(names)
    return names[first:] + names[:first]


def measure(row, plans, clock, fixed, options):
    """One row: {title, case, flops, bytes, goal, times: {contestant: [ms of each round]}, notes, …}."""
    import torch

    began = time.time()
    with row.contestants(plans / row.plan, clock, options) as (contestants, notes):
        if not math.isfinite(notes.get("difference", 0)):
            raise ValueError(f"our result is no number: differs by {notes['difference']}")
        differs = f", differs by {notes['difference']:.4f}" if notes else ""
        print(f"{row.title}: open in {time.time() - began:.1f} s{differs}", file=sys.stderr)
        everyone = {**{name: (lambda run=run: clock.median(run)) for name, run in fixed.items()}, **contestants}
        for name, time_of in everyone.items():
            began = time.time()
            time_of()  # compiles, records
            print(f"{row.title}: {name} ready in {time.time() - began:.1f} s", file=sys.stderr)
        if options.profile and not options.peers_only:
            notes["kernels"] = {name: kernels_of(time_of) for name, time_of in contestants.items()}
            if row.flops:
                notes["clocks"] = {name: clock_of(time_of) for name, time_of in everyone.items() if name != "copy"}
        times = {name: [] for name in everyone}
        for i in range(0 if options.peers_only else options.rounds):
            for name in turns(list(everyone), i):
                times[name].append(everyone[name]())
    torch.cuda.empty_cache()
    return {"title": row.title, "case": row.case, "flops": row.flops, "bytes": row.bytes, "goal": row.goal, "times": times, "notes": notes,
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "dense_flops": 2 * DENSE**3, "copy_bytes": COPY_BYTES}


if __name__ == "__main__":
    main()
