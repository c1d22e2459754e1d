"""Configuration of RWKV-7 (Goose), arXiv 2503.14456: sizes only, nothing that says which code runs."""

from __future__ import annotations

from transformers import PretrainedConfig


class Rwkv7Config(PretrainedConfig):
    """Sizes of an RWKV-7 language model; C = hidden_size, H = C / head_size heads.

    Args:
        vocab_size: tokens of the vocabulary.
        hidden_size: C, a multiple of head_size.
        num_hidden_layers: blocks.
        head_size: N, a multiple of 8 from 8 to 256.
        intermediate_size: width of channel mixing; None for 4 C.
        decay_rank, rate_rank, value_rank, gate_rank: widths of the low-rank functions of a token that make
            the decay (w1, w2), the in-context learning rate (a1, a2), the mix with the first layer's values
            (v1, v2) and the gate (g1, g2).
        layer_norm_epsilon: of all layer norms; the norm of each head has 64e-5, as in BlinkDL/RWKV-LM.
        use_cache: return the state, so that generation continues from it.

    Raises:
        ValueError: hidden_size is not a multiple of head_size.
    """

    model_type = "flash_rwkv7"

    def __init__(
        self,
        vocab_size: int = 65536,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        head_size: int = 64,
        intermediate_size: int | None = None,
        decay_rank: int = 64,
        rate_rank: int = 64,
        value_rank: int = 32,
        gate_rank: int = 128,
        layer_norm_epsilon: float = 1e-5,
        use_cache: bool = True,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 0,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = False,
        **others,
    ) -> None:
        if hidden_size % head_size:
            raise ValueError(f"hidden_size must be a multiple of head_size {head_size}, got {hidden_size}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.head_size = head_size
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.decay_rank = decay_rank
        self.rate_rank = rate_rank
        self.value_rank = value_rank
        self.gate_rank = gate_rank
        self.layer_norm_epsilon = layer_norm_epsilon
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **others,
        )

    @property
    def num_heads(self) -> int:
        """H."""
        return self.hidden_size // self.head_size


Rwkv7Config.register_for_auto_class()
