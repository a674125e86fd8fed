#!/usr/bin/env python3
"""Times decode steps of generation plans beside what memory bandwidth allows, and prints a table.

    benchmarks/decode.py MODEL PLAN... [--new-tokens=64] [--repeat=1] [--run=build/bin/moe-run]

MODEL is a qwen3_moe or olmoe directory (config.json and weights, e.g. of examples/olmoe-1b-7b/make.py), each PLAN a one-rank plan of it
(moe-opt MODEL --task=generate --batch=B --seq=S --max-seq=N --dtype=bf16 --target=sm_90). Prompts are random, end-of-sequence is ignored.

A step must read the weights that it uses and the caches: attention, router and head once, and each expert that some token chose. With random
weights choices are about uniform, so of E experts E(1 - (1 - k/E)^B) are expected in a layer. Bytes over the bandwidth of a copy measured on the
same card (PyTorch, read + written) give the bound. Needs NumPy, safetensors and, for the copy, PyTorch.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import save_file


def copy_bandwidth():
    """Bytes read and written a second by a device copy of 4 GiB: median of 20."""
    import torch

    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(23):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    name = torch.cuda.get_device_name()
    del source, target
    torch.cuda.empty_cache()
    return 2 * 2**31 / float(np.median(times[3:])), name


def step_bytes(config, batch, slots):
    """What one decode step reads, in bytes: (weights without experts, experts expected, caches)."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    experts = config.get("num_experts") or config["num_local_experts"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    attention = hidden * head * (2 * heads + 2 * kv) * 2
    router = hidden * experts * 4  # f32
    touched = experts * (1 - (1 - config["num_experts_per_tok"] / experts) ** batch)
    expert = 3 * width * hidden * 2
    caches = batch * slots * 2 * kv * head * 2
    return layers * (attention + router) + config["vocab_size"] * hidden * 2, layers * touched * expert, layers * caches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("plans", nargs="+", metavar="PLAN")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--run", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "bin", "moe-run"))
    options = parser.parse_args()
    with open(os.path.join(options.model, "config.json")) as file:
        config = json.load(file)
    if config.get("model_type") not in ("qwen3_moe", "olmoe"):
        parser.error(f"{options.model}: the count of bytes here is that of qwen3_moe and olmoe")
    bandwidth, card = copy_bandwidth()
    print(f"{card}, copy {bandwidth / 1e12:.2f} TB/s, {config['model_type']} of {config['num_hidden_layers']} layers")
    print(f"{'batch':>5} {'slots':>6} {'bytes a step':>13} {'bound ms':>9} {'step ms':>8} {'share':>6} {'tokens/s':>9} {'prefill ms':>11}")
    failed = False
    for plan in options.plans:
        with tempfile.TemporaryDirectory() as folder:
            inspect = subprocess.run([os.path.join(os.path.dirname(options.run), "moe-inspect"), plan, "--json"], capture_output=True, text=True)
            if inspect.returncode:
                print(f"{plan}: {inspect.stderr.strip()}", file=sys.stderr)
                failed = True
                continue
            info = json.loads(inspect.stdout)
            inputs = os.path.join(folder, "inputs.safetensors")
            ids = np.random.default_rng(1).integers(0, config["vocab_size"], (info["batch"], info["seq"]), np.int32)
            save_file({"input_ids": ids}, inputs)
            done = subprocess.run([options.run, plan, f"--weights={options.model}", f"--inputs={inputs}", f"--max-new-tokens={options.new_tokens}",
                                   "--ignore-eos", f"--repeat={options.repeat}", f"--outputs={os.path.join(folder, 'ids.safetensors')}"],
                                  capture_output=True, text=True)
        found = re.search(r"prefill ([0-9.]+) ms, decode median ([0-9.]+) ms", done.stderr)
        if done.returncode or not found:
            print(f"{plan}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}", file=sys.stderr)
            failed = True
            continue
        prefill, step = map(float, found.groups())
        slots = info["seq"] + options.new_tokens // 2  # on average
        total = sum(step_bytes(config, info["batch"], slots))
        bound = total / bandwidth * 1e3
        print(f"{info['batch']:>5} {slots:>6} {total / 1e9:>10.2f} GB {bound:>9.3f} {step:>8.3f} {bound / step:>6.2f} {info['batch'] / step * 1e3:>9.0f} {prefill:>11.2f}",
              flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
