"""nn.MultiheadAttention with every projection a layer of its own, so that each can be replaced by factors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError
from abridged.factorization.recurrent import linear


class Attention(nn.Module):
    """nn.MultiheadAttention of the same values: children `q_proj`, `k_proj`, `v_proj`, `out_proj`, each an nn.Linear.

    softmax(q kᵀ / √d + mask) v per head (Vaswani et al. 2017). Inputs and outputs are those of the original."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module
    in_proj_weight = in_proj_bias = None  # so nn.TransformerEncoderLayer sees that its fused kernel does not apply

    def __init__(self, original: nn.MultiheadAttention, projections: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = original.embed_dim, original.num_heads, original.head_dim
        self.batch_first, self.dropout = original.batch_first, original.dropout
        self._qkv_same_embed_dim = False
        for name, projection in projections.items():
            self.add_module(name, projection)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise InputError("is_causal needs attn_mask, as nn.MultiheadAttention does")
        batched, swapped = query.dim() == 3, query.dim() == 3 and not self.batch_first
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif swapped:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(self.q_proj, query), self._heads(self.k_proj, key), self._heads(self.v_proj, value)
        mask = self._mask(q, attn_mask, key_padding_mask)
        weights, drop = None, self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)  # (N, heads, L, S)
            weights = nn.functional.dropout((scores if mask is None else scores + mask).softmax(-1), drop)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = nn.functional.scaled_dot_product_attention(q, k, v, mask, drop)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return y.transpose(0, 1) if swapped else y if batched else y[0], weights

    def _heads(self, projection: nn.Module, x: Tensor) -> Tensor:
        """(N, L, E) → (N, heads, L, d)."""
        y: Tensor = projection(x)
        return y.reshape(*y.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, of a shape that fits (N, heads, L, S)."""
        if attn_mask is not None:
            attn_mask = _added(attn_mask, q)
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.reshape(len(q), self.num_heads, *attn_mask.shape[1:])
        if key_padding_mask is None:
            return attn_mask
        padding = _added(key_padding_mask, q)[:, None, None]
        return padding if attn_mask is None else attn_mask + padding


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of booleans (True: not looked at) as numbers: 0 or −∞."""
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


def attention(original: nn.MultiheadAttention) -> Attention:
    """An `Attention` that computes what nn.MultiheadAttention does. Raises `UnsupportedError` for bias_kv and add_zero_attn.

    >>> mha, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    >>> bool(torch.allclose(attention(mha)(x, x, x)[0], mha(x, x, x)[0], atol=1e-6))
    True
    """
    if original.bias_k is not None or original.add_zero_attn:
        raise UnsupportedError("MultiheadAttention with bias_kv or add_zero_attn, which no method takes apart")
    names = "q_proj", "k_proj", "v_proj"
    weights, biases = (_thirds(getattr(original, name)) for name in ("in_proj_weight", "in_proj_bias"))
    if not original._qkv_same_embed_dim:
        weights = [getattr(original, f"{name}_weight") for name in names]
    projections = {name: linear(*pair) for name, *pair in zip(names, weights, biases, strict=True)}
    out: Any = original.out_proj
    return Attention(original, projections | {"out_proj": linear(out.weight, out.bias)})


def _thirds(whole: nn.Parameter | None) -> list[Any]:
    """The three parts of a packed parameter, as parameters of their own."""
    if whole is None:
        return [None] * 3
    return [nn.Parameter(part.detach().clone(), whole.requires_grad) for part in whole.chunk(3)]
