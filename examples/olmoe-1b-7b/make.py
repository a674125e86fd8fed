#!/usr/bin/env python3
"""Writes a checkpoint with random weights in the shape of OLMoE-1B-7B (13.8 GB), or of another olmoe or qwen3_moe config: bf16, in shards with
their index, as on the Hub.

    examples/olmoe-1b-7b/make.py DIR [--inputs=4x2048]... [--headers-only] [--config=FILE] [--seed=N]

For runs at real size without a download: it has learnt nothing. Every weight depends on the seed alone. --inputs also writes
DIR/inputs-4x2048.safetensors with random token ids. --headers-only leaves holes in the files where the weights belong (all zero, no
space taken), which is all that moe-opt reads. --config takes another config, such as a tiny one or ../qwen3-30b-a3b/config.json (61 GB).

Needs Python 3 and NumPy. Takes about 10 s on 16 cores where the disk keeps up.
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import statistics
import struct

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
PIECE = 1 << 22  # elements that are made and written at a time


def tensors_of(config):
    """[(name, shape)] in the order of the files."""
    qwen = config["model_type"] == "qwen3_moe"
    hidden, width = config["hidden_size"], config["moe_intermediate_size" if qwen else "intermediate_size"]
    experts = config.get("num_experts") or config["num_local_experts"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    heads, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    tensors = [("model.embed_tokens.weight", [config["vocab_size"], hidden])]
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        tensors += [
            (base + "input_layernorm.weight", [hidden]),
            (base + "self_attn.q_proj.weight", [heads, hidden]),
            (base + "self_attn.k_proj.weight", [kv, hidden]),
            (base + "self_attn.v_proj.weight", [kv, hidden]),
            (base + "self_attn.o_proj.weight", [hidden, heads]),
            (base + "self_attn.q_norm.weight", [head if qwen else heads]),
            (base + "self_attn.k_norm.weight", [head if qwen else kv]),
            (base + "post_attention_layernorm.weight", [hidden]),
            (base + "mlp.gate.weight", [experts, hidden]),
        ]
        for expert in range(experts):
            one = f"{base}mlp.experts.{expert}."
            tensors += [(one + "gate_proj.weight", [width, hidden]), (one + "up_proj.weight", [width, hidden]),
                        (one + "down_proj.weight", [hidden, width])]
    return tensors + [("model.norm.weight", [hidden]), ("lm_head.weight", [config["vocab_size"], hidden])]


def write_headers(path, tensors, kind):
    """Makes a safetensors file with holes for the data. Returns where each tensor's data begin."""
    size, at, header = {"BF16": 2, "I32": 4}[kind], 0, {}
    for name, shape in tensors:
        end = at + size * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}


def normal_table(deviation):
    """bf16 numbers at the middles of 65536 equally likely parts of a normal distribution, as their 16 bits."""
    inverse = statistics.NormalDist(0, deviation).inv_cdf
    bits = np.array([inverse((i + 0.5) / 65536) for i in range(65536)], np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_weights(path, begin, shape, key, table):
    """Fills one tensor: ones for norms, else draws from the table."""
    count = int(np.prod(shape))
    with open(path, "r+b", buffering=0) as file:
        for first in range(0, count, PIECE):
            number = min(PIECE, count - first)
            if len(shape) == 1:
                values = np.full(number, 0x3F80, np.uint16)
            else:
                draws = np.random.Generator(np.random.SFC64([*key, first])).integers(0, 65536, number, np.uint16)
                values = table.take(draws)
            os.pwrite(file.fileno(), values, begin + 2 * first)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--inputs", action="append", default=[], metavar="BATCHxSEQ")
    parser.add_argument("--headers-only", action="store_true")
    parser.add_argument("--config", default=os.path.join(HERE, "config.json"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard-bytes", type=int, default=5 * 10**9, help="of a file, at most (unless one tensor has more)")
    options = parser.parse_args()
    with open(options.config) as file:
        config = json.load(file)
    if config["model_type"] not in ("olmoe", "qwen3_moe") or config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        parser.error(f"{options.config}: only olmoe and qwen3_moe models whose layers all have experts")
    os.makedirs(options.folder, exist_ok=True)
    shutil.copyfile(options.config, os.path.join(options.folder, "config.json"))

    shards, room = [], 0
    for name, shape in tensors_of(config):
        size = 2 * int(np.prod(shape))
        if not shards or size > room:
            shards.append([])
            room = options.shard_bytes
        shards[-1].append((name, shape))
        room -= size
    table = normal_table(config["initializer_range"])
    places, work, number = {}, [], 0
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        path = os.path.join(options.folder, name)
        begins = write_headers(path, tensors, "BF16")
        for tensor, shape in tensors:
            places[tensor] = name
            work.append((path, begins[tensor], shape, (options.seed, number), table))
            number += 1
    total = sum(2 * int(np.prod(item[2])) for item in work)
    with open(os.path.join(options.folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": places}, file, indent=1)
    if not options.headers_only:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [pool.submit(write_weights, *item) for item in work]:
                done.result()
    for text in options.inputs:
        shape = [int(part) for part in text.split("x")]
        path = os.path.join(options.folder, f"inputs-{text}.safetensors")
        begin = write_headers(path, [("input_ids", shape)], "I32")["input_ids"]
        ids = np.random.default_rng([options.seed, *shape]).integers(0, config["vocab_size"], shape, np.int32)
        with open(path, "r+b") as file:
            file.seek(begin)
            file.write(ids.tobytes())
    print(f"{options.folder}: {len(work)} tensors, {total} bytes in {len(shards)} files")


if __name__ == "__main__":
    main()
