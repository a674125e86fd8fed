"""Reads training checkpoints in NumPy: a reader of our own, written from docs/checkpoints.md."""

import json

import numpy as np


def manifest(step):
    return json.loads((step / "manifest.json").read_text())["manifest"]


def state(step):
    """{tensor: array} of a step's directory, put together from its boxes; every element must be in exactly one."""
    contents = manifest(step)
    data = [np.fromfile(step / file["name"], np.uint8) for file in contents["files"]]
    out = {}
    for tensor in contents["tensors"]:
        assert tensor["dtype"] == "f32"
        whole = np.empty(tensor["shape"], np.float32)
        covered = np.zeros(tensor["shape"], bool)
        for box in tensor["boxes"]:
            count = int(np.prod(box["extent"]))
            values = data[box["file"]][box["offset"] : box["offset"] + 4 * count].view(np.float32)
            place = tuple(slice(s, s + e) for s, e in zip(box["start"], box["extent"]))
            assert not covered[place].any()
            whole[place], covered[place] = values.reshape(box["extent"]), True
        assert covered.all()
        out[tensor["name"]] = whole
    return out
