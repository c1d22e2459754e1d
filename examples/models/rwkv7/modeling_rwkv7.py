"""RWKV-7 (Goose), arXiv 2503.14456, for transformers. Names and initial values as in BlinkDL/RWKV-LM.

Letters in shapes: B batch, T tokens, C channels, H heads, N head size, C = H·N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .cache_rwkv7 import Rwkv7Cache
from .configuration_rwkv7 import Rwkv7Config
from .kernel_rwkv7 import operators

HEAD_NORM_EPSILON = 64e-5
# A logit of the decay whose sigmoid is exactly 0 in every dtype: the state stays as it is.
NO_DECAY = -1e4


@dataclass
class Rwkv7Output(ModelOutput):
    """Outputs of both models; those that do not apply are None.

    Attributes:
        loss: mean cross-entropy of the next token where `labels` were given and not -100.
        logits: `[B, T, vocabulary]`.
        last_hidden_state: `[B, T, C]`, after the last norm.
        past_key_values: the states after the last token.
        hidden_states: `[B, T, C]` before each block and after the last norm, where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Rwkv7Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Padding:
    """Where the tokens are and where only padding.

    Attributes:
        absent: `[B, T, 1]`, True at padding.
        newest: `[B, T + 1]`, how many positions after the cached token the newest real token is, before each
            position and after the last.
    """

    absent: Tensor
    newest: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Padding:
        """From an attention mask `[B, T]`, nonzero at tokens."""
        mask = mask.bool()
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        newest = torch.where(mask, positions, 0).cummax(1).values
        return cls(~mask[..., None], functional.pad(newest, (1, 0)))


def shift(x: Tensor, last: Tensor | None, padding: Padding | None) -> tuple[Tensor, Tensor]:
    """The token before each of x `[B, T, C]`, and the last one `[B, C]`; padding is passed over.

    `last` `[B, C]` is the token before x, None for zeros.
    """
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last[:, None].to(x.dtype)
    tokens = torch.cat([first, x], 1)
    if padding is not None:
        tokens = tokens.gather(1, padding.newest[..., None].expand(-1, -1, x.shape[2]))
    return tokens[:, :-1], tokens[:, -1]


class Rwkv7TimeMix(nn.Module):
    """The delta rule: each head reads its state along kk, removes what it found there and writes v at k."""

    def __init__(self, config: Rwkv7Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        size = config.hidden_size
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0"):
            self.register_parameter(name, nn.Parameter(torch.empty(size)))
        ranks = {"w": config.decay_rank, "a": config.rate_rank, "g": config.gate_rank}
        if layer:
            self.v0 = nn.Parameter(torch.empty(size))
            ranks["v"] = config.value_rank
        for name, rank in ranks.items():
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(size, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, size)))
        self.r_k = nn.Parameter(torch.empty(config.num_heads, config.head_size))
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(size, size, bias=False) for _ in range(4)
        )
        self.ln_x = nn.GroupNorm(config.num_heads, size, eps=HEAD_NORM_EPSILON)

    def forward(
        self, x: Tensor, v_first: Tensor | None, padding: Padding | None, cache: Rwkv7Cache | None
    ) -> tuple[Tensor, Tensor]:
        """Mix x `[B, T, C]` over time; returns y `[B, T, C]` and the first layer's values `[B, T, C]`."""
        before, last = shift(x, cache and cache.attention_token[self.layer], padding)
        difference = before - x
        xr, xw, xk, xv, xa, xg = (
            torch.addcmul(x, difference, mix)
            for mix in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        )
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = self.w0.float() + (torch.tanh(xw @ self.w1) @ self.w2).float()
        rate = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        if self.layer == 0:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + xv @ self.v1 @ self.v2))

        kk = functional.normalize(self._heads(k * self.k_k), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        r, w, k, v, rate = (self._heads(each) for each in (r, w, k, v, rate))
        y = self._recurrence(r, w, k, v, -kk, kk * rate, padding, cache)
        if cache is not None:
            cache.attention_token[self.layer] = last

        y = self.ln_x(y.flatten(0, 1).flatten(1)).view_as(x)
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(2)
        return self.output(y * gate), v_first

    def _recurrence(self, r, w, k, v, a, b, padding: Padding | None, cache: Rwkv7Cache | None) -> Tensor:
        if padding is not None:  # d = 1 and nothing removed or written: the state passes as it is
            absent = padding.absent[..., None]
            w = w.masked_fill(absent, NO_DECAY)
            k, a, b = (each.masked_fill(absent, 0) for each in (k, a, b))
        ops = operators()
        if cache is None:
            return ops.wkv7(r, w, k, v, a, b, decay="sigmoid")[0]
        state = cache.wkv[self.layer]
        if r.shape[1] == 1 and not torch.is_grad_enabled():
            return ops.wkv7_step_(r, w, k, v, a, b, state, decay="sigmoid")
        y, cache.wkv[self.layer] = ops.wkv7(r, w, k, v, a, b, state, decay="sigmoid")
        return y

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_size))


class Rwkv7ChannelMix(nn.Module):
    """A squared-ReLU network on the token mixed with the one before."""

    def __init__(self, config: Rwkv7Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.x_k = nn.Parameter(torch.empty(config.hidden_size))
        self.key = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, padding: Padding | None, cache: Rwkv7Cache | None) -> Tensor:
        """`[B, T, C]` to `[B, T, C]`."""
        before, last = shift(x, cache and cache.channel_token[self.layer], padding)
        if cache is not None:
            cache.channel_token[self.layer] = last
        return self.value(torch.relu(self.key(torch.addcmul(x, before - x, self.x_k))) ** 2)


class Rwkv7Block(GradientCheckpointingLayer):
    """Time mixing and channel mixing, each on a normalised input and added to the stream."""

    def __init__(self, config: Rwkv7Config, layer: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.ln2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.att = Rwkv7TimeMix(config, layer)
        self.ffn = Rwkv7ChannelMix(config, layer)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        padding: Padding | None = None,
        past_key_values: Rwkv7Cache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x `[B, T, C]` after the block, and the first layer's values `[B, T, C]`."""
        y, v_first = self.att(self.ln1(x), v_first, padding, past_key_values)
        x = x + y
        return x + self.ffn(self.ln2(x), padding, past_key_values), v_first


class Rwkv7PreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = Rwkv7Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Rwkv7Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Rwkv7TimeMix):
            _init_time_mix(module)
        elif isinstance(module, Rwkv7ChannelMix):
            size, layers = module.config.hidden_size, module.config.num_hidden_layers
            init.copy_(module.x_k, _ramp(size, (1 - module.layer / layers) ** 4))
            init.uniform_(module.key.weight, -0.5 * size**-0.5, 0.5 * size**-0.5)
            init.zeros_(module.value.weight)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1e-4, 1e-4)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Rwkv7ForCausalLM):
            rows, columns = module.lm_head.weight.shape
            init.orthogonal_(module.lm_head.weight, gain=0.5 * max(rows / columns, 1) ** 0.5)


def _ramp(size: int, power: float) -> Tensor:
    """Mixing coefficients `[C]` from 1 down: low channels look at the token before, high ones less."""
    return 1 - torch.linspace(0, 1, size) ** power


def _init_time_mix(module: Rwkv7TimeMix) -> None:
    size, layers = module.config.hidden_size, module.config.num_hidden_layers
    depth, height = module.layer / max(layers - 1, 1), 1 - module.layer / layers
    powers = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}
    for name, power in powers.items():
        init.copy_(getattr(module, name), _ramp(size, power * height))
    init.copy_(module.w0, -6.5 + 5 * torch.linspace(0, 1, size) ** (0.85 + depth**0.5))
    init.zeros_(module.a0)
    init.constant_(module.k_k, 0.85)
    init.ones_(module.k_a)
    init.zeros_(module.r_k)
    if module.layer:
        init.ones_(module.v0)
    for name in "wagv" if module.layer else "wag":
        init.zeros_(getattr(module, f"{name}1"))
        init.orthogonal_(getattr(module, f"{name}2"), gain=0.1)
    for name, scale in {"receptance": 0.5, "key": 0.05, "value": 0.5}.items():
        init.uniform_(getattr(module, name).weight, -scale * size**-0.5, scale * size**-0.5)
    init.zeros_(module.output.weight)


class Rwkv7Model(Rwkv7PreTrainedModel):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: Rwkv7Config) -> None:
        super().__init__(config)
        operators()  # so that a missing kernel is noticed now, and nothing is loaded while compiling
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.ln0 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.blocks = nn.ModuleList(Rwkv7Block(config, layer) for layer in range(config.num_hidden_layers))
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
        past_key_values: Rwkv7Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_,
    ) -> Rwkv7Output:
        """Run the model.

        Args:
            input_ids: int64 `[B, T]`, or else inputs_embeds `[B, T, C]`.
            attention_mask: `[B, T]`, or with the tokens of the cache before them; zero at padding, which
                changes no state wherever it stands.
            past_key_values: the states to go on from; **updated**.
            use_cache: return the states; default: as configured, in training not.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.ln0(self.emb(input_ids) if inputs_embeds is None else inputs_embeds)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.training and self.gradient_checkpointing:
            use_cache = False  # the states would be updated once more when backward recomputes
        cache = past_key_values
        if cache is None and use_cache:
            cache = Rwkv7Cache(self.config, x.shape[0], x.device, x.dtype)
        padding = None if attention_mask is None else Padding.of(attention_mask[:, -x.shape[1] :])

        seen, v_first = [], None
        for block in self.blocks:
            seen.append(x)
            x, v_first = block(x, v_first, padding, past_key_values=cache)
        x = self.ln_out(x)
        if cache is not None:
            cache.note_tokens(x.shape[1])
        hidden = (*seen, x) if output_hidden_states else None
        return Rwkv7Output(
            last_hidden_state=x, past_key_values=cache if use_cache else None, hidden_states=hidden
        )


class Rwkv7ForCausalLM(Rwkv7PreTrainedModel, GenerationMixin):
    """The model with its head over the vocabulary."""

    def __init__(self, config: Rwkv7Config) -> None:
        super().__init__(config)
        self.model = Rwkv7Model(config)
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
        past_key_values: Rwkv7Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        **others,
    ) -> Rwkv7Output:
        """As `Rwkv7Model`, and the logits.

        Args:
            labels: int64 `[B, T]`, as input_ids (they are shifted here); -100 where no loss is wanted.
            logits_to_keep: of how many last tokens to compute logits; 0 for all.
        """
        output = self.model(
            input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, output_hidden_states
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **others)
        return Rwkv7Output(
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
        **others,
    ) -> dict:
        """The base's inputs; after the first step every token is real, so the mask goes."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, is_first_iteration=is_first_iteration, **others
        )
        if inputs.get("use_cache") and not is_first_iteration:
            inputs["attention_mask"] = None
        inputs.pop("position_ids", None)
        return inputs


Rwkv7Model.register_for_auto_class("AutoModel")
Rwkv7ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
