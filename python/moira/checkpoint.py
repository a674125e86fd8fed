"""Model directories on disk: reading and writing safetensors files, single or sharded with an index.

Own code for the file format, because we also need bfloat16 (which NumPy lacks) and, in tests, deliberately broken files. Belongs here:
bytes and names. Does not: what a tensor means or which tensors a model class has.
"""

import json
import struct
from pathlib import Path

import numpy as np

NUMPY_OF = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
NAME_OF = {np.dtype(v): k for k, v in NUMPY_OF.items()}


def to_bf16(array):
    """float32 values rounded to the nearest bfloat16 (ties to even), as their 16 bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encode(tensors):
    """{name: array, or (dtype name, shape, bytes)} -> (header dict, data bytes)."""
    header, parts, at = {}, [], 0
    for name, value in tensors.items():
        if isinstance(value, tuple):
            dtype, shape, raw = value
        else:
            value = np.ascontiguousarray(value)
            dtype, shape, raw = NAME_OF[value.dtype], list(value.shape), value.tobytes()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    return header, b"".join(parts)


def write_raw(path, header, data):
    """Writes a safetensors file from a header (dict, or text to write as it is) and the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def write(path, tensors):
    write_raw(path, *encode(tensors))


def read_raw(path):
    """-> (header dict without __metadata__, data bytes)"""
    blob = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, blob[8 + length :]


def read(path):
    """{name: array}; bfloat16 comes back as float32."""
    header, data = read_raw(path)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
            value = bits.view(np.float32)
        else:
            value = np.frombuffer(data[begin:end], NUMPY_OF[entry["dtype"]])
        out[name] = value.reshape(entry["shape"])
    return out


def stored(array, dtype):
    """The array as a value for write(), stored as F32, F16 or BF16."""
    array = np.ascontiguousarray(array, np.float32)
    if dtype == "BF16":
        return ("BF16", array.shape, to_bf16(array).tobytes())
    return array.astype(NUMPY_OF[dtype])


def write_model(directory, config, tensors, shards=1):
    """A model directory: config.json and the weights, in `shards` files (with an index if more than one)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if shards == 1:
        write(directory / "model.safetensors", tensors)
        return
    names = list(tensors)
    index = {"metadata": {}, "weight_map": {}}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        write(directory / file, {n: tensors[n] for n in part})
        index["weight_map"].update({n: file for n in part})
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def read_model(directory):
    """-> (config dict, {tensor name: array}), from a single file or shards."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8-sig"))
    index = directory / "model.safetensors.index.json"
    files = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()) if index.exists() else {"model.safetensors"}
    tensors = {}
    for file in sorted(files):
        tensors.update(read(directory / file))
    return config, tensors
