"""Nine families of decoders in one implementation, weights from safetensors.

Attribute names are Hugging Face's parameter names, so a checkpoint loads with no renaming table.
Llama is the plain path; what another family adds is an `if` on its feature in config.py.
Sources: Llama (arXiv 2302.13971), RMSNorm (arXiv 1910.07467), rotary embedding (arXiv 2104.09864),
grouped-query attention (arXiv 2305.13245), SwiGLU (arXiv 2002.05202), sliding window (Mistral 7B,
arXiv 2310.06825), soft caps and norms around a sublayer (Gemma 2, arXiv 2408.00118), norms of
queries and keys (OLMo 2, arXiv 2501.00656). Checked against transformers: tests/test_families.py.

Letters: B batch, T time (new tokens), S slots (keys to attend to), D hidden size, H query heads,
G key-value heads (H is a multiple of G), E head size, R rotated part of it, V vocabulary."""

import math
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from config import Config, Rope, read_config
from kernels.attention import Rule, attention, soft_cap
from support import nf4
from support.devices import DTYPES, resolve_device, resolve_dtype
from support.files import open_safetensors
from support.weights import check_finite, find_weights, tie

# Nothing is drawn at random in a block, so no generator's state has to be kept and put back.
once_more = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


def wide(x):
    """fp32, or float64 where that is what is computed in (the tests)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Normalise(torch.autograd.Function):
    """y = x·s with s = 1/√(mean x² + ε) over the last axis; autograd would keep x twice in fp32."""

    @staticmethod
    def forward(ctx, x, eps, dtype):
        y = wide(x)  # bf16 would lose the mean of squares
        scale = torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, scale)
        return (y * scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):
        x, scale = ctx.saved_tensors
        y, d_y = wide(x) * scale, wide(d_y)
        # s itself depends on x: dL/dx = s·(dL/dy - y·mean(y·dL/dy))
        d_x = d_y - y * (y * d_y).mean(-1, keepdim=True)
        return d_x.mul_(scale).to(x.dtype), None, None


class Gate(torch.autograd.Function):
    """activation(gate)·up; autograd would keep the activation besides the two."""

    @staticmethod
    def forward(ctx, gate, up, activation):
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            y = ctx.activation(gate)
        (d_gate,) = torch.autograd.grad(y, gate, d_out * up)
        return d_gate, d_out * y.detach(), None


class RMSNorm(nn.Module):
    def __init__(self, size: int, config: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.upcast = config.rms_norm_eps, config.norm_upcast
        self.plus_one = config.norm_plus_one

    def forward(self, x):  # (..., size)
        if not self.upcast:  # rounded before the weight multiplies: Llama's order
            return self.weight * Normalise.apply(x, self.eps, x.dtype)
        # Gemma's files hold the weight's distance from 1.
        weight = wide(self.weight) + 1 if self.plus_one else wide(self.weight)
        return (weight * Normalise.apply(x, self.eps, weight.dtype)).to(x.dtype)


@lru_cache(maxsize=8)
def rope_frequencies(rope: Rope, device: torch.device):  # (R/2,) radians a position
    """Angular frequencies, lowered where the model was stretched to a longer context."""
    exponent = torch.arange(0, rope.size, 2, dtype=torch.float32, device=device) / rope.size
    wave = rope.theta**exponent  # (R/2,) positions for one radian
    if rope.kind == "longrope":  # each wave is stretched by a factor of its own
        wave = torch.tensor(rope.short_factor, device=device) * wave
    frequency = 1.0 / wave
    # `keep` is the share of a frequency that stays; the rest is divided by the factor. Pairs of
    # many turns in the original context keep theirs, those of few are slowed, with a ramp between.
    keep = 0.0 if rope.kind == "linear" else 1.0
    if rope.kind == "llama3":  # the ramp is along the turns
        turns = rope.original_max_position_embeddings * frequency / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        keep = ((turns - low) / (high - low)).clamp(0, 1)
    if rope.kind == "yarn":  # along the pairs
        low, high = rope.ramp
        keep = 1 - ((torch.arange(len(wave), device=device) - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / rope.factor


def rotary_cos_sin(rope: Rope, positions, dtype):  # (B or 1, T) -> cos, sin (B or 1, 1, T, R)
    """The angle by which each pair of a head's numbers turns, as its cosine and sine."""
    # In fp32: in bf16 neighbouring positions beyond 256 would have the same angle.
    angle = positions[:, None, :, None] * rope_frequencies(rope, positions.device)
    angle = torch.cat((angle, angle), dim=-1)  # both halves of a head turn by the same angles
    cos, sin = angle.cos() * rope.attention_factor, angle.sin() * rope.attention_factor
    return cos.to(dtype), sin.to(dtype)


def apply_rotary(x, cos_sin):  # (B, heads, T, E), cos and sin (B or 1, 1, T, R)
    """Turn each pair (x_i, x_{i+R/2}) by its position's angle (the halves layout of HF weights)."""
    cos, sin = cos_sin
    if (size := cos.shape[-1]) < x.shape[-1]:  # Phi-3 leaves the rest of the head unturned
        return torch.cat((apply_rotary(x[..., :size], cos_sin), x[..., size:]), dim=-1)
    left, right = x.chunk(2, dim=-1)  # (B, heads, T, R/2) each
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


def whole_rows(layer, q, k, v, positions, rule: Rule):
    """Every row of the batch is a sequence from its start."""
    return attention(q, k, v, rule)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.size, self.qk_norm = layer, config.head_dim, config.qk_norm
        self.rule = Rule(1 / math.sqrt(config.query_pre_attn_scalar),  # keeps scores near size 1
                         config.attn_logit_softcapping, config.windows[layer])
        self.fused = config.fused
        width, bias = config.hidden_size, config.qkv_bias
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.sizes = [n * self.size for n in heads]
        if self.fused:
            self.qkv_proj = nn.Linear(width, sum(self.sizes), bias=bias)
        else:
            self.q_proj = nn.Linear(width, self.sizes[0], bias=bias)
            self.k_proj = nn.Linear(width, self.sizes[1], bias=bias)
            self.v_proj = nn.Linear(width, self.sizes[2], bias=bias)
        self.o_proj = nn.Linear(self.sizes[0], width, bias=config.o_bias)
        if self.qk_norm:  # so that scores do not grow in training (OLMo 2, section 3)
            full = self.qk_norm == "full"
            self.q_norm = RMSNorm(self.sizes[0] if full else self.size, config)
            self.k_norm = RMSNorm(self.sizes[1] if full else self.size, config)

    def project(self, x):  # (B, T, D) -> (B, H, T, E) and twice (B, G, T, E)
        if self.fused:
            q, k, v = self.qkv_proj(x).split(self.sizes, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H·E), (B, T, G·E)
        if self.qk_norm == "full":  # OLMo 2 norms across all heads
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (-1, self.size)) for y in (q, k, v))  # (B, T, heads, E)
        if self.qk_norm == "head":  # Qwen 3 and Gemma 3 norm each head by itself
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x, cos_sin, attend, positions):  # (B, T, D) -> (B, T, D)
        q, k, v = self.project(x)
        # Queries and keys turn with their position, so that a score sees only their distance.
        q, k = apply_rotary(q, cos_sin), apply_rotary(k, cos_sin)
        y = attend(self.layer, q, k, v, positions, self.rule)  # (B, H, T, E)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, H·E) -> (B, T, D)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.fused, self.activation = config.fused, ACTIVATIONS[config.activation]
        if self.fused:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=False)
        else:
            self.gate_proj = nn.Linear(width, inner, bias=False)
            self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):  # (B, T, D)
        if self.fused:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)  # (B, T, intermediate)
        return self.down_proj(Gate.apply(gate, up, self.activation))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.norms = config.norms
        norm = partial(RMSNorm, config.hidden_size, config)
        if self.norms != "after":
            self.input_layernorm = norm()
        self.self_attn = Attention(config, layer)
        # Hugging Face's name: before the MLP in Llama, else right after the attention.
        self.post_attention_layernorm = norm()
        if self.norms == "both":
            self.pre_feedforward_layernorm = norm()
        self.mlp = MLP(config)
        if self.norms != "before":
            self.post_feedforward_layernorm = norm()

    def forward(self, x, *rest):  # x (B, T, D); the rest is Attention's
        if self.norms == "before":  # Llama: the residual stream itself is never normed
            x = x + self.self_attn(self.input_layernorm(x), *rest)
            return x + self.mlp(self.post_attention_layernorm(x))
        # Gemma 2 and 3, OLMo 2: what a sublayer adds to the stream is normed.
        y = self.input_layernorm(x) if self.norms == "both" else x
        x = x + self.post_attention_layernorm(self.self_attn(y, *rest))
        y = self.pre_feedforward_layernorm(x) if self.norms == "both" else x
        return x + self.post_feedforward_layernorm(self.mlp(y))


class Decoder(nn.Module):
    """All but the head: token ids to hidden states. Training scores only some of their rows."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config)
        self.gradient_checkpointing = False  # True: the backward pass runs each block once more

    def forward(self, ids, positions=None, attend=whole_rows):  # (B, T) -> (B, T, D)
        """Positions (B or 1, T) count from 0 in every row unless they are given.
        `attend(layer, q, k, v, positions, rule)` computes the attention and so decides which keys a
        query sees: by default those before it in its row, so that pads on the right are never seen;
        packed sequences (triplets.py) and cached ones (generate.py) have their own."""
        config = self.config
        x = self.embed_tokens(ids)
        if config.scale_embedding:  # rounded to x's dtype first, as transformers does
            x = x * torch.tensor(config.hidden_size**0.5, dtype=x.dtype)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]  # (1, T)
            most = config.max_position_embeddings
            if most < ids.shape[1] and any(rope.kind == "longrope" for rope in config.ropes):
                raise ValueError(f"LongRoPE's short factors apply to at most {most} tokens")
        dtype = torch.float32 if config.rope_upcast else x.dtype
        # Angles once for all layers: a model has one or two kinds of them.
        rotary = {rope: rotary_cos_sin(rope, positions, dtype) for rope in set(config.ropes)}
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for block, rope in zip(self.layers, config.ropes, strict=True):
            rest = rotary[rope], attend, positions
            x = once_more(block, x, *rest) if again else block(x, *rest)
        return self.norm(x)  # (B, T, D)


class Head(nn.Linear):
    """Hidden states to logits; code that uses its weight alone has to cap them too (losses.py)."""

    def __init__(self, config: Config):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.cap = config.final_logit_softcapping

    def forward(self, x):  # (..., D) -> (..., V)
        return self.finish(super().forward(x))

    def finish(self, logits):
        return logits if self.cap is None else soft_cap(logits, self.cap)


class Transformer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.folder = None  # where the weights are from
        self.met = set()  # folders of adapters that were compared with it (support/adapters.py)
        self.model = Decoder(config)
        self.lm_head = Head(config)

    def forward(self, ids, positions=None, attend=whole_rows):  # (B, T) -> (B, T, V)
        return self.lm_head(self.model(ids, positions, attend))


def right_pad(sequences, pad: int, device=None):  # B lists of ids -> (B, T)
    """Token ids as one batch. A token sees only what stands before it, so no pad is ever seen."""
    T = max(map(len, sequences))
    return torch.tensor([[*ids, *[pad] * (T - len(ids))] for ids in sequences], device=device)


def outline(folder: Path):  # -> (Transformer on the meta device, what find_weights returns)
    """The model of a Hugging Face folder without its weights, once they are known to fit it."""
    config = read_config(folder)
    with torch.device("meta"):  # no memory
        model = Transformer(config)
    model.folder = folder
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    return model, find_weights(folder, shapes, tied=config.tie_word_embeddings)


def load_model(folder: Path, *, device: str = "auto", dtype: str = "auto",
               base_dtype: str | None = None) -> Transformer:
    """The model of a Hugging Face folder, frozen, in the dtype that `resolve_dtype` gives. With
    `base_dtype` "nf4" the blocks' linears take 4 bits. Memory peaks at the weights' own size.
    InputError where a file, field or tensor is missing, damaged, not finite or unsupported."""
    (model, places), device = outline(folder), resolve_device(device)
    wanted = DTYPES.get(resolve_dtype(dtype, device), torch.bfloat16)
    in_4_bits = nf4.shrink(model) if base_dtype == "nf4" else ()
    weights = {}
    for name, (path, key, _) in places.items():
        # Opened for each tensor: what was read of a mapped file takes memory until it is closed.
        with open_safetensors(path, device=device) as file:
            weights[name] = file.get_tensor(key).to(wanted)
        check_finite(weights[name], key, path)
        if name in in_4_bits:
            weights |= nf4.quantised(name, weights[name])
    if model.config.tie_word_embeddings and not tie(weights):
        model.config = replace(model.config, tie_word_embeddings=False)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False).eval()
