#!/usr/bin/env python3
"""Writes this repository's own text and sources as a dataset to train on: PREFIX.bin and PREFIX.idx, Megatron's format.

    examples/train-3b/make.py PREFIX [--most=BYTES]

A token is a byte (0 to 255), and 256 ends a file. Files stand in the order of their paths, so that the same sources give the same dataset.
--most leaves out what comes after so many bytes. config.json beside this describes a model of 3.3 billion weights for such tokens:

    examples/train-3b/make.py text
    moe-opt examples/train-3b/config.json --task=train --batch=8 --seq=1024 --lr=3e-4 --betas=0.9,0.95 --weight-decay=0.1 --clip-norm=1 --aux-loss=0.01 \\
        --schedule=constant,warmup=20 -o train.moeplan                 --dtype=bf16: products in bf16, weights at rest in f32
    moe-run train.moeplan --init=1 --data=text --steps=200 --metrics=metrics.jsonl --checkpoint=run --save-every=100

Needs nothing but Python 3.
"""

import argparse
import array
import itertools
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("benchmarks", "dialects", "docs", "examples", "include", "lib", "python", "runtime", "scripts", "test", "tools")
ENDINGS = {".md", ".h", ".cpp", ".cu", ".def", ".fbs", ".mlir", ".py", ".td"}
END = 256
UINT16 = 8  # the format's code of the tokens' type


def files():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS and path.is_file()]
    return sorted([*paths, ROOT / "README.md"])


def documents(most):
    left = most
    for path in files():
        text = path.read_bytes()[:left]
        left -= len(text)
        if not text:
            return
        yield array.array("H", [*text, END])


def write(prefix, rows):
    lengths = []
    with open(f"{prefix}.bin", "wb") as file:
        for row in rows:
            lengths.append(len(row))
            file.write(struct.pack(f"<{len(row)}H", *row))
    ends = list(itertools.accumulate(lengths))
    offsets = [2 * (end - length) for end, length in zip(ends, lengths)]
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, UINT16, len(lengths), len(lengths) + 1))
        file.write(struct.pack(f"<{len(lengths)}i", *lengths))
        file.write(struct.pack(f"<{len(lengths)}q", *offsets))
        file.write(struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1)))
    return len(lengths), sum(lengths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix")
    parser.add_argument("--most", type=int, default=1 << 40)
    options = parser.parse_args()
    count, tokens = write(options.prefix, documents(options.most))
    print(f"{options.prefix}.bin: {tokens} tokens of {count} files")


if __name__ == "__main__":
    main()
