"""Whole models: stacks of layers between embeddings and a head.

    model = Decoder(vocab=1000, hidden=64, layers=[Layer(Attention(4, rope=Rope()), MoE(8, 128, Router(k=2))), ...])
    model.write("my-model", batch=4, seq=32)            # my-model/model.mlir, for moe-opt
    initialise(model.program(4, 32), "my-model")        # and weights to go with it

Belongs here: how layers follow each other, positions, embeddings, heads, inputs and outputs. Does not: what is in a layer (layers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moira.layers import Layer, MLP, Norm
from moira.program import Program, Tensor


@dataclass(frozen=True)
class Sinusoid:
    """Sines and cosines added to the embeddings, of position + `offset`; with `pad`, of positions that do not count padding (M2M-100, NLLB)."""

    offset: int = 0
    pad: int | None = None


@dataclass(frozen=True)
class RelativeBias:
    """T5's biases on attention scores, by the distance's bucket, one weight a stack."""

    buckets: int = 32
    max_distance: int = 128


Positions = Sinusoid | RelativeBias | None  # None: rotary, in the attention, or none at all


@dataclass
class _Stack:
    """One run of layers over the tokens of one input."""

    p: Program
    name: str
    layers: Sequence[Layer]
    norm: Norm
    positions: Positions
    causal: bool
    first_layer: int

    def run(self, ids: Tensor, x: Tensor, mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None) -> Tensor:
        """ids [B, S], x [B, S, D] embeddings -> [B, S, D], normed, in the type of products."""
        p = self.p
        with p.at(f"{self.name}positions"):
            pos = p.positions(ids.shape[1])
            memory_pos = p.positions(memory.shape[1]) if memory else None
            if isinstance(self.positions, Sinusoid):
                x = self._add_sinusoid(ids, pos, x)
        bias = self._relative_bias(pos)
        for i, layer in enumerate(self.layers):
            number, name = self.first_layer + i, f"{self.name}layers.{i}"
            with p.at(f"{name}.attention"):
                h = self.norm.emit(p, x, f"{name}.attention_norm", number, p.dtype)
                x = p.add(x, layer.attention.emit(p, h, f"{name}.attention", number, qpos=pos, kpos=pos, mask=mask, bias=bias, causal=self.causal))
            if layer.cross:
                if memory is None or memory_mask is None:
                    raise ValueError(f"{name} has cross-attention, but there is no encoder")
                with p.at(f"{name}.cross"):
                    h = self.norm.emit(p, x, f"{name}.cross_norm", number, p.dtype)
                    seen = layer.cross.emit(p, h, f"{name}.cross", number, memory=memory, qpos=pos, kpos=memory_pos, mask=memory_mask, causal=False)
                    x = p.add(x, seen)
            with p.at(f"{name}.feed_forward"):
                x = p.add(x, self._feed_forward(layer, x, name, number))
        with p.at(f"{self.name}final_norm"):
            return self.norm.emit(p, x, f"{self.name}final_norm", None, p.dtype)

    def _feed_forward(self, layer: Layer, x: Tensor, name: str, number: int) -> Tensor:
        h = self.norm.emit(self.p, x, f"{name}.feed_forward_norm", number, self.p.dtype)
        if isinstance(layer.feed_forward, MLP):
            return layer.feed_forward.emit(self.p, h, f"{name}.mlp", number)
        # Gates see the norm before it is rounded.
        exact = h if self.p.dtype == "f32" else self.norm.emit(self.p, x, f"{name}.feed_forward_norm", number, "f32")
        return layer.feed_forward.emit(self.p, h, exact, f"{name}.moe", number)

    def _add_sinusoid(self, ids: Tensor, pos: Tensor, x: Tensor) -> Tensor:
        pad = self.positions.pad
        if pad is None:
            return self.p.add(x, self.p.sinusoid(pos, x.shape[-1], self.positions.offset))
        counted = self.p.token_positions(ids, pad)
        return self.p.add(x, self.p.sinusoid(counted, x.shape[-1], self.positions.offset, zero=pad))

    def _relative_bias(self, pos: Tensor) -> Tensor | None:
        if not isinstance(self.positions, RelativeBias):
            return None
        with self.p.at(f"{self.name}positions"):
            shape = (self.positions.buckets, self.layers[0].attention.heads)
            table = self.p.weight(f"{self.name}relative_bias.weight", shape, dtype="f32")
            return self.p.relative_bias(table, pos, pos, self.positions.max_distance, not self.causal)


@dataclass
class _Model:
    """What both kinds of model have.

    vocab, hidden   sizes of the embedding table
    norm            in front of every block and at the end of each stack
    positions       Sinusoid, RelativeBias, or None where the attention rotates
    tied_head       logits come from the embedding table; else from a weight of their own
    embedding_scale, head_scale   factors on embeddings and on what the head reads
    """

    vocab: int
    hidden: int
    norm: Norm = field(default=Norm(), kw_only=True)
    positions: Positions = field(default=None, kw_only=True)
    tied_head: bool = field(default=False, kw_only=True)
    embedding_scale: float = field(default=1.0, kw_only=True)
    head_scale: float = field(default=1.0, kw_only=True)

    def program(self, batch: int, seq: int, dtype: str = "f32", **sizes: int) -> Program:
        raise NotImplementedError

    def write(self, directory: str | Path, batch: int, seq: int, dtype: str = "f32", **sizes: int) -> Path:
        """Writes DIRECTORY/model.mlir and returns its path; `moe-opt DIRECTORY/model.mlir --mesh=... -o PLAN` compiles it."""
        text = self.program(batch, seq, dtype, **sizes).text()
        path = Path(directory) / "model.mlir"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _embed(self, p: Program, ids: Tensor) -> Tensor:
        with p.at("embedding"):
            x = p.embedding(ids, p.weight("embedding.weight", (self.vocab, self.hidden)))
            return x if self.embedding_scale == 1.0 else p.scale(x, self.embedding_scale)

    def _head(self, p: Program, x: Tensor) -> None:
        with p.at("head"):
            if self.head_scale != 1.0:
                x = p.scale(x, self.head_scale)
            name = "embedding.weight" if self.tied_head else "head.weight"
            p.result("logits", p.linear(x, p.weight(name, (self.vocab, self.hidden))))

    def _ids(self, p: Program, name: str, batch: int, seq: int) -> Tensor:
        return p.input(name, (batch, seq), least=0, most=self.vocab - 1)


@dataclass
class Decoder(_Model):
    """A causal language model. Inputs: `input_ids` [B, S], optionally `attention_mask` [B, S]; output: `logits` [B, S, V] f32."""

    layers: Sequence[Layer] = ()

    def program(self, batch: int, seq: int, dtype: str = "f32") -> Program:
        """The program for inputs of these sizes. ValueError names what does not fit."""
        p = Program(dtype)
        ids = self._ids(p, "input_ids", batch, seq)
        mask = p.input("attention_mask", (batch, seq), fill=1.0)
        stack = _Stack(p, "", self.layers, self.norm, self.positions, causal=True, first_layer=0)
        self._head(p, stack.run(ids, self._embed(p, ids), mask))
        return p


@dataclass
class EncoderDecoder(_Model):
    """An encoder whose output every decoder layer reads by its `cross` attention; one embedding table for both.

    Inputs: `input_ids` [B, S] and `decoder_input_ids` [B, T], optionally `attention_mask` and `decoder_attention_mask`; output: `logits` [B, T, V].
    """

    encoder: Sequence[Layer] = ()
    decoder: Sequence[Layer] = ()

    def program(self, batch: int, seq: int, dtype: str = "f32", dec_seq: int | None = None) -> Program:
        """The program for inputs of these sizes; dec_seq is T, default: seq."""
        p = Program(dtype)
        dec_seq = dec_seq or seq
        source = self._ids(p, "input_ids", batch, seq)
        source_mask = p.input("attention_mask", (batch, seq), fill=1.0)
        target = self._ids(p, "decoder_input_ids", batch, dec_seq)
        target_mask = p.input("decoder_attention_mask", (batch, dec_seq), fill=1.0)
        encoder = _Stack(p, "encoder.", self.encoder, self.norm, self.positions, causal=False, first_layer=0)
        memory = encoder.run(source, self._embed(p, source), source_mask)
        decoder = _Stack(p, "decoder.", self.decoder, self.norm, self.positions, causal=True, first_layer=len(self.encoder))
        self._head(p, decoder.run(target, self._embed(p, target), target_mask, memory, source_mask))
        return p
