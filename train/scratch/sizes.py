"""The shapes of models trained from scratch. Pure: it knows nothing of torch.

All are llama-shaped: RMSNorm, rotary positions, SwiGLU, grouped K/V heads, the head tied to the embedding. Widths of
256 and its multiples let every quantized type of llama.cpp fit (rows of k-quants are blocks of 256 weights); the larger
models grow in depth, which serves small models better (MobileLLM, arXiv 2402.14905).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A llama's shape: width of the hidden states, of the feed-forward layer, layers, heads and K/V heads."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def block_parameters(self) -> int:
        """Parameters of all layers and norms, without the embedding."""
        head = self.hidden_size // self.num_attention_heads
        attention = 2 * self.hidden_size**2 + 2 * self.hidden_size * head * self.num_key_value_heads
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.num_hidden_layers * layer + self.hidden_size

    def parameters(self, vocab_size: int) -> int:
        """All parameters; the tied head counts once, with the embedding."""
        return self.block_parameters() + vocab_size * self.hidden_size


# Named by all their parameters with the vocabulary beside them (`1m` is for a small one).
SIZES: dict[str, tuple[Shape, int]] = {
    "1m": (Shape(128, 320, 3, 4, 2), 4096),
    "5m": (Shape(256, 768, 4, 4, 2), 8192),
    "15m": (Shape(512, 1280, 4, 8, 4), 8192),
    "40m": (Shape(512, 1280, 13, 8, 4), 8192),
}
