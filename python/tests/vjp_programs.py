"""Small programs in the moe dialect, one for each differentiable operation, and their derivatives by finite differences.

Belongs here: how a program is written, differentiated (moe-opt --moe-vjp) and run in f64, and the comparison. The operations are in test_vjp.py.
"""

from dataclasses import dataclass

import numpy as np

from moira import checkpoint, compile_plan, run_plan
from moira.tools import run_tool

STEP = 1e-5  # of central differences: their error is of the order of its square


def type_of(array):
    """The tensor type of an array; what is floating is f32 in the text and f64 when the program runs."""
    return f"tensor<{'x'.join([*map(str, np.shape(array)), 'i32' if np.asarray(array).dtype.kind == 'i' else 'f32'])}>"


@dataclass
class Case:
    """A program: `lines` make the values `results` (name -> shape) of the arguments. In the text {name} is an argument's or a result's type.

    `fixed`: floating arguments that have no gradient (a maximum that the result does not depend on, a count).
    """

    arguments: dict
    lines: list
    results: dict
    fixed: tuple = ()
    linear: tuple = ()  # arguments in which every result is linear

    def text(self):
        types = {name: type_of(value) for name, value in self.arguments.items()}
        types |= {name: f"tensor<{'x'.join([*map(str, shape), 'f32'])}>" for name, shape in self.results.items()}
        arguments = ", ".join(f'%{name}: {types[name]} {{moe.name = "{name}"}}' for name in self.arguments)
        results = ", ".join(f'{types[name]} {{moe.name = "{name}"}}' for name in self.results)
        lines = [line.format_map(types) for line in self.lines]
        values = ", ".join(f"%{name}" for name in self.results)
        returned = ", ".join(types[name] for name in self.results)
        return "\n".join(
            [f"func.func @forward({arguments}) -> ({results}) {{", *(f"  {line}" for line in lines), f"  return {values} : {returned}", "}", ""]
        )


class Differentiated:
    """A case, compiled with its gradients."""

    def __init__(self, case, folder):
        self.case, self.folder = case, folder
        (folder / "forward.mlir").write_text(case.text())
        done = run_tool("moe-opt", folder / "forward.mlir", "--moe-vjp", "-o", folder / "vjp.mlir")
        assert done.code == 0, f"{done}\n{case.text()}"
        compile_plan(folder / "vjp.mlir", folder / "vjp.moeplan", "--report=none")

    def run(self, arguments, cotangents):
        """-> every result and every gradient, in f64."""
        tensors = {name: np.asarray(v, np.int32 if np.asarray(v).dtype.kind == "i" else np.float64) for name, v in arguments.items()}
        tensors |= {f"d.{name}": v for name, v in cotangents.items()}
        checkpoint.write(self.folder / "in.safetensors", tensors)
        out = self.folder / "out.safetensors"
        run_plan(self.folder / "vjp.moeplan", self.folder, self.folder / "in.safetensors", out, "--reference=f64")
        return checkpoint.read(out)


def check(case, folder, rng, directions=2, tolerance=2e-8):
    """Compares the gradient of Σ ⟨d, result⟩ with central differences along random directions, for each argument."""
    program = Differentiated(case, folder)
    cotangents = {name: rng.standard_normal(shape) for name, shape in case.results.items()}
    at = program.run(case.arguments, cotangents)

    def objective(arguments):
        got = program.run(arguments, cotangents)
        return sum(float((got[name] * d).sum()) for name, d in cotangents.items())

    for name, value in case.arguments.items():
        if np.asarray(value).dtype.kind == "i" or name in case.fixed:
            continue
        gradient = at[f"grad.{name}"]
        assert gradient.shape == np.shape(value)
        assert np.abs(gradient).max() > 0, f"the gradient of {name} is zero"
        for _ in range(directions):
            step = rng.standard_normal(np.shape(value))
            ahead = objective({**case.arguments, name: value + STEP * step})
            behind = objective({**case.arguments, name: value - STEP * step})
            want, got = (ahead - behind) / (2 * STEP), float((gradient * step).sum())
            scale = np.abs(gradient * step).sum()
            assert abs(got - want) <= tolerance * scale, f"{name}: {got} instead of {want}"
        if name in case.linear:
            # ⟨A x, y⟩ = ⟨x, A' y⟩, for x itself
            value_of = sum(float((at[r] * d).sum()) for r, d in cotangents.items())
            assert abs(value_of - float((gradient * value).sum())) <= 1e-12 * np.abs(gradient * value).sum()
