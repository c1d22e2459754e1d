"""The language model around the blocks, for transformers: embedding, cache, head, loss and generation.

Letters in shapes: B batch, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .cache_rwkv import RwkvCache
from .configuration_rwkv import RwkvBaseConfig
from .kernel_rwkv import operators
from .layers_rwkv import RwkvBlock, RwkvMix
from .loss_rwkv import next_token_loss
from .padding_rwkv import Padding


@dataclass
class RwkvOutput(ModelOutput):
    """Outputs of both models; those that do not apply are None.

    Attributes:
        loss: mean cross-entropy of the next token where `labels` were given and not -100.
        logits: `[B, T, vocabulary]`; none in training with labels, where they would take the most memory.
        last_hidden_state: `[B, T, C]`, after the last norm.
        past_key_values: the states after the last token.
        hidden_states: `[B, T, C]` before each block and after the last norm, where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: RwkvCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class RwkvPreTrainedModel(PreTrainedModel):
    """What the models with and without a head share."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RwkvBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True

    def new_cache(self, batch: int, initial: Sequence[Tensor] | None = None) -> RwkvCache:
        """The past of `batch` sequences before their first token: empty, or the state that each starts from.

        Args:
            initial: `[H, N_value, N_key]` a layer; where they require gradients, they receive them.
        """
        return RwkvCache(self.config, batch, self.device, self.dtype, initial)

    def compile_mixing(self, **options) -> None:
        """Have torch.compile fuse what lies between the matrices and the operator of each layer.

        All layers but the first share one graph, so this takes a fraction of the time of compiling the model.
        It happens at the first call of each kind: with gradients, without, and with a single token.

        Args:
            options: of `torch.compile`; `dynamic=True` has a graph serve any number of tokens at once.
        """
        for module in self.modules():
            if isinstance(module, RwkvMix):
                module.compile(**options)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RwkvMix):
            module.initialize()
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1e-4, 1e-4)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RwkvForCausalLM):
            rows, columns = module.lm_head.weight.shape
            init.orthogonal_(module.lm_head.weight, gain=0.5 * max(rows / columns, 1) ** 0.5)


class RwkvModel(RwkvPreTrainedModel):
    """Embedding, blocks and the last norm; the versions say which mixing the blocks are made of."""

    time_mix: ClassVar[type[RwkvMix]]
    channel_mix: ClassVar[type[RwkvMix]]

    def __init__(self, config: RwkvBaseConfig) -> None:
        super().__init__(config)
        operators()  # so that a missing kernel is noticed now, and nothing is loaded while compiling
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.ln0 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.blocks = nn.ModuleList(
            RwkvBlock(config, layer, self.time_mix(config, layer), self.channel_mix(config, layer))
            for layer in range(config.num_hidden_layers)
        )
        self.ln_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.emb

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.emb = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: RwkvCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_,
    ) -> RwkvOutput:
        """Run the model.

        Args:
            input_ids: int64 `[B, T]`, or else inputs_embeds `[B, T, C]`.
            attention_mask: `[B, T]`, or with the tokens of the cache before them; zero at padding, which
                changes no state wherever it stands.
            past_key_values: the states to go on from; **updated**.
            use_cache: return the states; default: as configured, in training not.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds, or past_key_values together with
                gradient checkpointing in training.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.ln0(self.emb(input_ids) if inputs_embeds is None else inputs_embeds)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.training and self.gradient_checkpointing:
            use_cache = False  # the states would be updated once more when backward recomputes
            if past_key_values is not None:
                raise ValueError("with gradient checkpointing there can be no past_key_values in training")
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.new_cache(x.shape[0])
        padding = None if attention_mask is None else Padding.of(attention_mask[:, -x.shape[1] :])
        # Decoding does without T: on `[B, C]` it takes a quarter fewer operations, each of which counts.
        single = x.shape[1] == 1 and cache is not None and not torch.is_grad_enabled()
        if single:
            x, padding = x.squeeze(1), None if padding is None else padding.single()

        seen, v_first = [], None
        for block in self.blocks:
            seen.append(x)
            x, v_first = block(x, v_first, padding, past_key_values=cache)
        x = self.ln_out(x)
        seen.append(x)
        if single:
            seen = [each.unsqueeze(1) for each in seen]
        x = seen[-1]
        if cache is not None:
            cache.note_tokens(x.shape[1])
        hidden = tuple(seen) if output_hidden_states else None
        return RwkvOutput(
            last_hidden_state=x, past_key_values=cache if use_cache else None, hidden_states=hidden
        )


class RwkvForCausalLM(RwkvPreTrainedModel, GenerationMixin):
    """The model with its head over the vocabulary."""

    model_class: ClassVar[type[RwkvModel]]

    def __init__(self, config: RwkvBaseConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: RwkvCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        **others,
    ) -> RwkvOutput:
        """As `RwkvModel`, and the logits.

        Args:
            labels: int64 `[B, T]`, as input_ids (they are shifted here); -100 where no loss is wanted.
            logits_to_keep: of how many last tokens to compute logits; 0 for all.
        """
        output = self.model(
            input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, output_hidden_states
        )
        hidden, loss, logits = output.last_hidden_state, None, None
        if labels is not None:
            loss = next_token_loss(self.lm_head, hidden, labels, **others)
        if labels is None or not self.training:
            logits = self.lm_head(hidden[:, -logits_to_keep:])
        return RwkvOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict:
        """The base's inputs; after the first step every token is real, so the mask goes.

        `generate` takes `past_key_values` and the like only if this takes what it calls kwargs.
        """
        inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **kwargs
        )
        if inputs.get("use_cache") and not is_first_iteration:
            inputs["attention_mask"] = None
        inputs.pop("position_ids", None)
        return inputs
