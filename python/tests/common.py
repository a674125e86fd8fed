"""Names that every test shares: where things lie, the classes and meshes of the matrix, and how close is close."""

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "test" / "golden"
CLASSES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
# Every class with a golden model; the oracle and the random models know those above only.
GOLDEN_CLASSES = (*CLASSES, "deepseek_v2", "deepseek_v3", "gpt_oss", "granitemoe", "phimoe")
# "" is one rank.
MESHES = ("", "ep=2", "ep=4", "dp=2", "dp=2,ep=2", "tp=2", "dp=2,tp=2", "ep=2,tp=2", "dp=2,ep=2,tp=2")


def ranks_of(mesh):
    """Number of ranks of a mesh such as "dp=2,ep=4"."""
    return int(np.prod([int(part.split("=")[1]) for part in mesh.split(",") if part]))


def relative_error(got, want):
    """Largest difference in units of the largest wanted magnitude; infinite if shapes differ or a value is not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.abs(got - want).max() / np.abs(want).max())
