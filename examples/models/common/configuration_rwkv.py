"""What the configurations of RWKV-5, 6 and 7 share: sizes only, nothing that says which code runs."""

from __future__ import annotations

from typing import ClassVar

from transformers import PretrainedConfig


class RwkvBaseConfig(PretrainedConfig):
    """Sizes of an RWKV language model; C = hidden_size, H = C / head_size heads.

    Args:
        vocab_size: tokens of the vocabulary.
        hidden_size: C, a multiple of head_size.
        num_hidden_layers: blocks.
        head_size: N, a multiple of 8 from 8 to 256.
        intermediate_size: width of channel mixing; None for as many times C as is usual for the version.
        layer_norm_epsilon: of all layer norms; the norm of each head has 64e-5, as in BlinkDL/RWKV-LM.
        use_cache: return the state, so that generation continues from it.
    """

    widening: ClassVar[float]

    vocab_size: int = 65536
    hidden_size: int = 768
    num_hidden_layers: int = 12
    head_size: int = 64
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False

    @property
    def num_heads(self) -> int:
        """H.

        Raises:
            ValueError: hidden_size is not a multiple of head_size.
        """
        if self.hidden_size % self.head_size:
            raise ValueError(
                f"hidden_size must be a multiple of head_size {self.head_size}, got {self.hidden_size}"
            )
        return self.hidden_size // self.head_size

    @property
    def channel_mix_size(self) -> int:
        """Width of channel mixing: intermediate_size, or what is usual."""
        return self.intermediate_size or int(self.widening * self.hidden_size) // 32 * 32
