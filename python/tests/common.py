"""Names that every test shares: where things lie, the classes and meshes of the matrix, and how close is close."""

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "test" / "golden"
CLASSES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
# "" is one rank.
MESHES = ("", "ep=2", "ep=4", "dp=2", "dp=2,ep=2", "tp=2", "dp=2,tp=2", "ep=2,tp=2", "dp=2,ep=2,tp=2")
# Every folder of golden models is a class. The four above meet all meshes, the others these.
GOLDEN_CLASSES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
FEWER_MESHES = ("", "ep=2", "ep=4", "dp=2", "tp=2", "ep=2,tp=2")


def has_experts(kind):
    config = json.loads((GOLDEN / kind / "config.json").read_text())
    return any(field in config for field in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"))


def golden_options(kind):
    """What moe-opt wants to know about a golden's inputs."""
    encoder_decoder = json.loads((GOLDEN / kind / "config.json").read_text()).get("is_encoder_decoder", False)
    return ("--batch=2", "--seq=24", *(("--dec-seq=12",) if encoder_decoder else ()))


def golden_pairs():
    """(class, mesh): those that the golden models are held against; ep only where there are experts."""
    pairs = []
    for kind in GOLDEN_CLASSES:
        meshes = MESHES if kind in CLASSES else FEWER_MESHES
        pairs += [(kind, mesh) for mesh in meshes if "ep=" not in mesh or has_experts(kind)]
    return pairs


def ranks_of(mesh):
    """Number of ranks of a mesh such as "dp=2,ep=4"."""
    return int(np.prod([int(part.split("=")[1]) for part in mesh.split(",") if part]))


def relative_error(got, want):
    """Largest difference in units of the largest wanted magnitude; infinite if shapes differ or a value is not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.abs(got - want).max() / np.abs(want).max())
