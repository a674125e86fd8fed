"""Programs written by hand in the moe dialect that show what a gate does: their output is the matrix of weights, token by expert.

The logits are rows of an embedding table, so that tokens are split over a mesh as in a model, and every expert is the matrix that writes 1 in
its own column: what `combine` gives for a token is the weight of each expert that ran. Nothing here knows what a gate should do.
"""

from dataclasses import dataclass, field

import numpy as np

from moira import checkpoint, compile_plan, run_plan


@dataclass
class Program:
    """Logits [B,S,E] and the lines that make a routing %r from %logits_of; `states` are further weights by name."""

    logits: np.ndarray
    k: int
    lines: list  # of moe ops; {L} stands for the type of the logits, {R} for the routing
    states: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)  # name -> array: further arguments %name of the program
    row_lines: tuple = ()  # ops that make %changed from %rows; {W} stands for the rows' type

    def text(self):
        batch, seq, experts = self.logits.shape
        rows = batch * seq
        tokens = f"{batch}x{seq}"
        routing = f"!moe.routing<{tokens}, experts = {experts}, k = {self.k}>"
        states = {"logits": self.logits.reshape(rows, experts), "ones": np.ones((rows, 1)), "experts": np.ones((experts, experts, 1)), **self.states}
        out = ["module {"]
        types = {n: f"tensor<{'x'.join(map(str, v.shape))}x{'i32' if v.dtype.kind == 'i' else 'f32'}>" for n, v in states.items()}
        for name, value in states.items():
            out.append(f'  moe.state @{name} : {types[name]} from <names = ["{name}"], disk_shape = {list(value.shape)}>')
        arguments = [f'%input_ids: tensor<{tokens}xi32> {{moe.name = "input_ids", moe.range = array<i64: 0, {rows - 1}>}}']
        for name, value in self.inputs.items():
            shape = "x".join(map(str, value.shape))
            arguments.append(f'%{name}: tensor<{shape}xi32> {{moe.name = "{name}"}}')
        dense = f"tensor<{tokens}x{experts}xf32>"
        out.append(f"  func.func @forward({', '.join(arguments)}) -> ({dense} {{moe.name = \"weights\"}}) {{")
        out += [f"    %{name} = moe.param @{name} : {types[name]}" for name in states]
        column, choices = f"tensor<{tokens}x1xf32>", f"tensor<{rows * self.k}x1xf32>"
        out.append(f"    %logits_of = moe.embedding %input_ids, %logits : (tensor<{tokens}xi32>, tensor<{rows}x{experts}xf32>) -> {dense}")
        out.append(f"    %ones_of = moe.embedding %input_ids, %ones : (tensor<{tokens}xi32>, tensor<{rows}x1xf32>) -> {column}")
        # Complete on every rank, as a norm leaves it in a model: only linear ops take sums of parts.
        out.append(f"    %x = moe.clamp %ones_of from 0.0 to 1.0 : ({column}) -> {column}")
        out += ["    " + line.replace("{L}", dense).replace("{R}", routing) for line in self.lines]
        out.append(f"    %rows = moe.dispatch %x, %r : ({column}, {routing}) -> {choices}")
        out += ["    " + line.replace("{W}", choices) for line in self.row_lines]
        wide, sent = f"tensor<{rows * self.k}x{experts}xf32>", "%changed" if self.row_lines else "%rows"
        out.append(f"    %out = moe.grouped_matmul {sent} by %r, %experts contract 1 : ({choices}, {routing}, tensor<{experts}x{experts}x1xf32>) -> {wide}")
        out.append(f"    %y = moe.combine %out, %r : ({wide}, {routing}) -> {dense}")
        out += [f"    return %y : {dense}", "  }", "}"]
        return "\n".join(out) + "\n"

    def write(self, directory):
        """The program, its weights and its inputs, as files in `directory`."""
        batch, seq, experts = self.logits.shape
        rows = batch * seq
        tensors = {
            "logits": self.logits.reshape(rows, experts),
            "ones": np.ones((rows, 1)),
            "experts": np.eye(experts)[:, :, None],
            **self.states,
        }
        (directory / "program.mlir").write_text(self.text())
        disk = {n: np.ascontiguousarray(t, t.dtype if t.dtype.kind == "i" else np.float32) for n, t in tensors.items()}
        checkpoint.write(directory / "model.safetensors", disk)
        ids = np.arange(rows, dtype=np.int32).reshape(batch, seq)
        checkpoint.write(directory / "inputs.safetensors", {"input_ids": ids, **self.inputs})

    def run(self, directory, mesh="", *options, run_options=()):
        """Compiles for the mesh and runs; the outputs by name. `write` came before."""
        plan = directory / "p.moeplan"
        compile_plan(directory / "program.mlir", plan, *([f"--mesh={mesh}"] if mesh else []), *options)
        run_plan(plan, directory, directory / "inputs.safetensors", directory / "out.safetensors", *run_options)
        return checkpoint.read(directory / "out.safetensors")


def weight_matrix(ids, weights, experts):
    """[T,k] ids and weights -> [T,E], as a Program's output has it; negative ids are dropped choices."""
    out = np.zeros((len(ids), experts))
    for token, (row_ids, row_weights) in enumerate(zip(ids, weights)):
        for expert, weight in zip(row_ids, row_weights):
            if expert >= 0:
                out[token, expert] += weight
    return out
