#!/usr/bin/env python3
"""Measures generation and forward passes on this machine's processor beside what its memory allows and beside PyTorch, and prints a table.

    benchmarks/host.py MODEL [--rounds=5] [--batch=1]... [--forward=1x128]... [--peer=grouped_mm]... [--dtype=bf16] [--bin=build/bin]

MODEL is an olmoe or qwen3_moe directory, e.g. of examples/olmoe-1b-7b/make.py. Each round runs every row once by moe-run (a process of its own,
which loads the model first; loading is not counted) and once by each peer: the model in transformers with that implementation of experts
(eager, grouped_mm, batched_mm), loaded once, on as many threads. `--peer=none` leaves them out. Prompts are random, 64 tokens before new ones.
Medians over the rounds; of a generation each round gives the median of its steps. `--forward=none` or `--batch=0` leave rows out.

The bound of a decode step: bytes that it must read (weights of attention, router, head and of the experts that random choices touch, and caches)
over the rate at which all cores read memory, measured in each round (`bench-host --benchmark_filter=memory`, built with -DMOIRA_BENCHMARKS=ON).
"of copy" is the same for the rate of a copy that goes past the caches, bytes read and written. Both models are in memory at once: take a model of fewer layers (make.py --config) where they do not fit. Needs NumPy, safetensors
and, for peers, PyTorch and transformers.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from decode import step_bytes
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT = 64


def command(arguments):
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done


def memory_rates(options):
    """Bytes a second: read, and read + written by a copy."""
    program = os.path.join(options.bin, "bench-host")
    done = command([program, "--benchmark_filter=memory", "--benchmark_format=json"])
    rates = {run["name"].split("/")[0]: run["bytes_per_second"] for run in json.loads(done.stdout)["benchmarks"]}
    return rates["memory read"], rates["memory copy"]


class Ours:
    """Plans of the rows, and runs of them."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder

    def prepare(self, row, vocabulary):
        name, batch, length = row
        plan, inputs = os.path.join(self.folder, f"{name}{batch}x{length}.moeplan"), os.path.join(self.folder, f"{batch}x{length}.safetensors")
        more = [f"--max-seq={length + self.options.new_tokens}"] if name == "generate" else []
        command([os.path.join(self.options.bin, "moe-opt"), self.options.model, f"--task={name}", f"--batch={batch}", f"--seq={length}",
                 f"--dtype={self.options.dtype}", "--target=host", "-o", plan, *more])
        save_file({"input_ids": np.random.default_rng(1).integers(0, vocabulary, (batch, length), np.int32)}, inputs)

    def seconds(self, row):
        name, batch, length = row
        plan, inputs = os.path.join(self.folder, f"{name}{batch}x{length}.moeplan"), os.path.join(self.folder, f"{batch}x{length}.safetensors")
        more = [f"--max-new-tokens={self.options.new_tokens}", "--ignore-eos"] if name == "generate" else ["--repeat=3"]
        done = command([os.path.join(self.options.bin, "moe-run"), plan, f"--weights={self.options.model}", f"--inputs={inputs}",
                        f"--outputs={os.path.join(self.folder, 'outputs.safetensors')}", *more])
        pattern = r"decode median ([0-9.]+) ms" if name == "generate" else r"median ([0-9.]+) ms"
        return float(re.search(pattern, done.stderr).group(1)) / 1e3


class Peer:
    """transformers' model; all peers share one set of weights."""

    model = None

    def __init__(self, options, experts):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self.torch, self.options, self.experts, self.warm = torch, options, experts, set()
        if Peer.model is None:
            kind = {"bf16": torch.bfloat16, "f32": torch.float32}[options.dtype]
            Peer.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=kind).eval()

    def seconds(self, row):
        name, batch, length = row
        torch, model = self.torch, Peer.model
        model.set_experts_implementation(self.experts)
        ids = torch.from_numpy(np.random.default_rng(1).integers(0, model.config.vocab_size, (batch, length)))
        times = []
        with torch.inference_mode():
            if name == "forward":
                if row not in self.warm:
                    model(ids, use_cache=False)
                    self.warm.add(row)
                start = time.perf_counter()
                model(ids, use_cache=False)
                times.append(time.perf_counter() - start)
            else:
                state = model(ids, use_cache=True, logits_to_keep=1)
                for _ in range(self.options.new_tokens - 1):
                    ids = state.logits[:, -1:].argmax(-1)
                    start = time.perf_counter()
                    state = model(ids, past_key_values=state.past_key_values, use_cache=True)
                    times.append(time.perf_counter() - start)
        return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, action="append", help="rows of a generation (default 1, 8, 32)")
    parser.add_argument("--forward", action="append", metavar="BATCHxSEQ", help="of a forward pass (default 1x128, 4x128)")
    parser.add_argument("--peer", action="append", help="default grouped_mm, eager")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--bin", default=os.path.join(HERE, "..", "build", "bin"))
    options = parser.parse_args()
    options.threads = len(os.sched_getaffinity(0))
    with open(os.path.join(options.model, "config.json")) as file:
        config = json.load(file)
    rows = [("generate", batch, PROMPT) for batch in options.batch or [1, 8, 32] if batch]
    rows += [("forward", *map(int, text.split("x"))) for text in options.forward or ["1x128", "4x128"] if text != "none"]
    names = [name for name in options.peer or ["grouped_mm", "eager"] if name != "none"]
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(options, folder)
        for row in rows:
            ours.prepare(row, config["vocab_size"])
        runners = {"moira": ours, **{name: Peer(options, name) for name in names}}
        times, rates = {(row, name): [] for row in rows for name in runners}, []
        for i in range(options.rounds):
            rates.append(memory_rates(options))
            for row in rows:
                for name, runner in runners.items():
                    times[row, name].append(runner.seconds(row))
            print(f"round {i + 1} of {options.rounds}", file=sys.stderr)
    read, copy = (statistics.median(column) for column in zip(*rates))
    print(f"{options.threads} threads, read {read / 1e9:.1f} GB/s, copy {copy / 1e9:.1f} GB/s (read + written); {config['model_type']} of "
          f"{config['num_hidden_layers']} layers, {options.dtype}; milliseconds a step")
    print(" | ".join(["row".ljust(16), "   moira", *(name.rjust(10) for name in names), "best peer / moira", "bound", "share of bound", "of copy", "tokens/s"]))
    for row in rows:
        name, batch, length = row
        middle = {runner: statistics.median(times[row, runner]) for runner in runners}
        step = middle["moira"]
        cells = [f"{name} {batch}x{length}".ljust(16), f"{step * 1e3:8.1f}", *(f"{middle[peer] * 1e3:10.1f}" for peer in names)]
        cells.append(f"{min(middle[peer] for peer in names) / step:.2f}" if names else "-")
        if name == "generate":
            scale = 2 if options.dtype == "f32" else 1
            total = scale * sum(step_bytes(config, batch, PROMPT + options.new_tokens // 2))
            cells += [f"{total / read * 1e3:.1f}", f"{total / read / step:.2f}", f"{total / copy / step:.2f}", f"{batch / step:.1f}"]
        else:
            cells += ["-", "-", "-", f"{batch * length / step:.0f}"]
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
