"""Published models that have no Hugging Face class, ready to compile: `z_code_m3()` and `pr_moe()`. Every size can be changed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moira.layers import MLP, Attention, Capacity, Layer, MoE, Norm, Residual, Rope, Router
from moira.models import Decoder, EncoderDecoder, Sinusoid


def z_code_m3(
    *,
    encoder_layers: int = 24,
    decoder_layers: int = 12,
    hidden: int = 1024,
    width: int = 4096,
    heads: int = 16,
    experts: int = 64,
    every: int = 2,
    vocab: int = 128_000,
    capacity_factor: float = 2.0,
    least_capacity: int = 4,
    random_token_selection: bool = True,
    seed: int = 0,
    pad: int = 1,
) -> EncoderDecoder:
    """Z-code M3: an encoder-decoder of M2M-100's form (layer norms with biases in front of blocks, ReLU, sinusoidal positions, one embedding
    table that is also the head), in which every `every`-th layer has `experts` experts and a top-1 gate.

    The capacity factor is 2.0 in evaluation and 1.0 in training, with random token selection. The defaults are the model of 10 billion
    parameters (64 experts). After Kim et al., Scalable and efficient MoE training for multitask multilingual models (2021).
    """
    capacity = Capacity(
        "factor",
        capacity_factor,
        least=least_capacity,
        policy="random" if random_token_selection else "position",
        seed=seed if random_token_selection else 0,
    )
    sparse = MoE(experts, width, Router(k=1), capacity, activation="relu", gated=False, bias=True)
    dense = MLP(width, activation="relu", gated=False, bias=True)
    attention = Attention(heads, bias=True)

    def layers(count: int, cross: Attention | None) -> list[Layer]:
        return [Layer(attention, sparse if i % every == every - 1 else dense, cross) for i in range(count)]

    return EncoderDecoder(
        vocab,
        hidden,
        norm=Norm("layer"),
        positions=Sinusoid(pad=pad),
        tied_head=True,
        embedding_scale=math.sqrt(hidden),
        encoder=layers(encoder_layers, None),
        decoder=layers(decoder_layers, attention),
    )


def pr_moe(
    *,
    layers: int = 24,
    hidden: int = 1024,
    heads: int = 16,
    width: int | None = None,
    experts: Sequence[int] = (32,) * 10 + (64,) * 2,
    every: int = 2,
    vocab: int = 50_257,
    mix: str = "sum",
    k: int = 1,
) -> Decoder:
    """PR-MoE: a causal model whose every `every`-th layer is sparse, with more experts in the later ones (the pyramid: `experts`, one number a
    sparse layer) and a dense block beside the experts (the residual: mix "sum", or "softmax" as DeepSpeed has it).

    The defaults are the sizes of 350M+PR-MoE-32/64 (4 billion parameters); positions are rotary. After Rajbhandari et al., DeepSpeed-MoE (2022).
    """
    width = width or 4 * hidden
    sparse = [i for i in range(layers) if i % every == every - 1]
    if len(experts) != len(sparse):
        raise ValueError(f"{len(experts)} numbers of experts were given for {len(sparse)} sparse layers of {layers}")
    mlp = MLP(width, activation="gelu_tanh", gated=False, bias=True)
    attention = Attention(heads, bias=True, rope=Rope())
    counts = dict(zip(sparse, experts))

    def feed_forward(i: int) -> MLP | MoE:
        if i not in counts:
            return mlp
        return MoE(counts[i], width, Router(k=k), activation="gelu_tanh", gated=False, bias=True, residual=Residual(mlp, mix))

    return Decoder(vocab, hidden, norm=Norm("layer"), tied_head=True, layers=[Layer(attention, feed_forward(i)) for i in range(layers)])
