"""Fresh weights for a model of one's own: safetensors that match a Program, written tensor by tensor.

A tensor's numbers depend on the seed and its name only, so two programs of one model (other batches, other types) get the same weights.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moira.checkpoint import NUMPY_OF, to_bf16
from moira.program import Program, StoredTensor

_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_PART = 1 << 22  # numbers made at a time


def _values(tensor: StoredTensor, seed: int, std: float, dtype: str) -> Iterator[bytes]:
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    left = math.prod(tensor.shape)
    while left:
        count = min(left, _PART)
        left -= count
        if tensor.init == "normal":
            part = rng.standard_normal(count, np.float32) * np.float32(std)
        else:
            part = np.full(count, tensor.init == "ones", np.float32)
        yield to_bf16(part).tobytes() if dtype == "BF16" else part.astype(NUMPY_OF[dtype]).tobytes()


def initialise(
    program: Program, directory: str | Path, *, seed: int = 0, std: float = 0.02, dtype: str = "F32", shard_bytes: int = 5_000_000_000
) -> None:
    """Writes DIRECTORY/model.safetensors, or shards of about `shard_bytes` and their index.

    Norms are ones, biases zeros, everything else is normal with the deviation `std`. dtype: "F32", "BF16" or "F16". Files appear under their
    names when they are whole. OSError where the disk does not take them.
    """
    if dtype not in _BYTES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(_BYTES)}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in program.stored.values():
        size = math.prod(tensor.shape) * _BYTES[dtype]
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    index: dict[str, dict] = {"metadata": {}, "weight_map": {}}
    for i, tensors in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write(directory / name, tensors, seed, std, dtype)
        index["weight_map"].update({t.name: name for t in tensors})
    if len(shards) > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write(path: Path, tensors: list[StoredTensor], seed: int, std: float, dtype: str) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * _BYTES[dtype]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                for part in _values(tensor, seed, std, dtype):
                    file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
