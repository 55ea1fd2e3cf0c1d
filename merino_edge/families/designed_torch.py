"""The designed family in transformers' form: blocks of growing width, pre-norm RMSNorm, rotary attention, GELU FFN
(gated or not), tied embedding; on request gated convolutions, causal taps and n-gram tables. Importing this module
registers it for `AutoModelForCausalLM`.

Batch B, sequence T, width E, query heads H, KV heads G, head size D, vocabulary V. A shared block
runs one layer's weights `depth` times, each use with a cache layer of its own.
"""

from dataclasses import field
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils.deprecation import deprecate_kwarg

from merino_edge.families.designed import ID_PARTS, MIXED, NGRAMS, TAPPED, Architecture, Block, tapped
from merino_edge.storage.faults import fault_list
from merino_runtime.errors import MerinoError

Rotary = tuple[Tensor, Tensor]  # cos and sin, [B or 1, T, D]
# Matrices whose outputs are added to the residual stream.
BRANCHES = ("attention.out.weight", "convolution.out.weight", "down.weight")


class MerinoConfig(PreTrainedConfig):
    """`Architecture` under the names that transformers and its tools look for.

    Args:
        blocks: a list of `{width, ffn_ratio, depth, shared, kv_heads, gated, attention_every}`; the last four may be
            absent.
        vocab_size, max_position_embeddings: `vocab` and `context`.
        head_size, rope_theta, rms_norm_eps, width_change, taps, ngrams: as in `Architecture`.

    `hidden_size`, `num_hidden_layers` and `num_attention_heads` are computed from the blocks, for tools that read them.
    Raise MerinoError for a geometry that cannot be.
    """

    model_type = "merino"
    keys_to_ignore_at_inference = ["past_key_values"]

    blocks: list[dict[str, Any]] = field(default_factory=lambda: [{"width": 64, "ffn_ratio": 1.0, "depth": 1}])
    vocab_size: int = 256
    head_size: int = 32
    max_position_embeddings: int = 256
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    width_change: str = "projection"
    taps: bool = False
    ngrams: list[dict[str, int]] = field(default_factory=list)
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not self.tie_word_embeddings:
            raise MerinoError("tie_word_embeddings is false: a MeRino decoder's head is its embedding, leave it true")
        arch = self.architecture
        self.hidden_size = arch.blocks[-1].width
        self.num_hidden_layers = len(arch.kv_layers)
        self.num_attention_heads = self.hidden_size // self.head_size
        for derived in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            kwargs.pop(derived, None)
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> Architecture:
        try:
            return Architecture.of_config(self)
        except ValidationError as error:
            raise MerinoError(
                f"this configuration is not a decoder: {fault_list(error)}. Correct config.json"
            ) from error


class Attention(nn.Module):
    """Attention with rotary positions and one packed projection. `num_key_value_groups` query heads in a row share one
    KV head."""

    is_causal = True

    def __init__(self, config: MerinoConfig, block: Block):
        super().__init__()
        self.config = config
        self.head_size = config.head_size
        width, kv_width = block.width, block.kv_width(config.head_size)
        self.widths = width, kv_width, kv_width
        self.num_key_value_groups = width // kv_width
        self.qkv = nn.Linear(width, sum(self.widths), bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None, cache: Cache | None, use: int) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_size)
        parts = self.qkv(x).split(self.widths, dim=-1)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in parts)  # [B, H, T, D], [B, G, T, D] twice
        query, key = rotate(query, rotary), rotate(key, rotary)
        if cache is not None:
            key, value = cache.update(key, value, use)  # [B, G, cached + T, D]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.head_size**-0.5)  # [B, T, H, D]
        return self.out(mixed.reshape(*x.shape[:2], -1))


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary positions on [B, H, T, D], the halves paired (RoFormer, arXiv 2104.09864, in GPT-NeoX's order). In
    x's dtype: with two dtypes mixed, gradients of a compiled model were NaN in bfloat16 for some batches."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    wide = x.to(cos.dtype)
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


@torch.compiler.disable  # in its graph gradients were NaN in bfloat16 on a CPU (docs/decisions/training.md)
def rotary_table(positions: Tensor, head_size: int, theta: float) -> Rotary:
    """cos and sin for `positions` [B, T], in float32; [B, T, D]."""
    steps = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-steps / head_size)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


class Taps(nn.Module):
    """Weigh each channel of a position and of those before it in its text: [B, T, E] -> [B, T, E]. The weights are
    [taps, 1, E], those of the position itself last. The input is cached as a layer of keys and values, half of the
    channels as each.

    `alone`: whether they begin as if there were none.
    """

    def __init__(self, width: int, taps: int, alone: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(taps, 1, width))
        self.alone = alone

    def initial(self) -> Tensor:
        if not self.alone:
            return torch.randn_like(self.weight) * len(self.weight) ** -0.5
        return torch.cat((torch.zeros_like(self.weight[1:]), torch.ones_like(self.weight[:1])))

    def forward(self, x: Tensor, inside: Tensor, cache: Cache | None, index: int) -> Tensor:
        before, tokens = len(self.weight) - 1, x.shape[1]
        rows = x
        if cache is not None:
            key, value = x.unsqueeze(1).chunk(2, dim=-1)  # [B, 1, T, E / 2]
            rows = torch.cat(cache.update(key, value, index), dim=-1)[:, 0]  # [B, cached + T, E]
        rows = nn.functional.pad(rows, (0, 0, before, 0))[:, -(before + tokens) :]
        mixed = x * self.weight[before]
        for back in range(1, before + 1):
            earlier = rows[:, before - back : before - back + tokens]
            mixed = mixed + earlier * inside[back] * self.weight[before - back]
        return mixed


class Convolution(nn.Module):
    """LFM2's gated short convolution (arXiv 2511.23404): [B, T, E] -> [B, T, E]."""

    def __init__(self, width: int):
        super().__init__()
        self.into = nn.Linear(width, 3 * width, bias=False)  # the gate before the taps, the one behind them, the input
        self.taps = Taps(width, MIXED)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, inside: Tensor, cache: Cache | None, index: int) -> Tensor:
        before, behind, value = self.into(x).chunk(3, dim=-1)
        return self.out(behind * self.taps(before * value, inside, cache, index))


class NgramTable(nn.Embedding):
    """Rows of hashed n-grams, zeros at first."""


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)). [B, T, E] -> [B, T, E]

    `attends`: whether the mixer is attention or a gated convolution. `tapped`: as the function of this name.
    """

    def __init__(self, config: MerinoConfig, block: Block, attends: bool = True, tapped: int = 0):
        super().__init__()
        self.attention_norm = nn.RMSNorm(block.width, eps=config.rms_norm_eps)
        self.attends, self.cache_layers = attends, 1 + tapped
        if attends:
            self.attention = Attention(config, block)
        else:
            self.convolution = Convolution(block.width)
        self.attention_taps = Taps(block.width, TAPPED, alone=True) if tapped else None
        self.ffn_taps = Taps(block.width, TAPPED, alone=True) if tapped > 1 else None
        self.ffn_norm = nn.RMSNorm(block.width, eps=config.rms_norm_eps)
        self.gated = block.gated
        self.up = nn.Linear(block.width, (2 if block.gated else 1) * block.ffn_width, bias=False)  # the gate first
        self.down = nn.Linear(block.ffn_width, block.width, bias=False)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor | None, inside: Tensor, cache: Cache | None, use: int
    ) -> Tensor:
        """`inside` [TAPPED, B, T, 1]: whether the position so many tokens before is of the same text. `use`: the first
        of its `cache_layers`, that of the mixer."""
        normed = self.attention_norm(x)
        if self.attention_taps is not None:
            normed = self.attention_taps(normed, inside, cache, use + 1)
        if self.attends:
            x = x + self.attention(normed, rotary, mask, cache, use)
        else:
            x = x + self.convolution(normed, inside, cache, use)
        normed = self.ffn_norm(x)
        if self.ffn_taps is not None:
            normed = self.ffn_taps(normed, inside, cache, use + 2)
        hidden = self.up(normed)  # [B, T, F], gated [B, T, 2 F]
        gate, *value = hidden.chunk(2, dim=-1) if self.gated else (hidden,)
        active = nn.functional.gelu(gate, approximate="tanh")
        return x + self.down(active * value[0] if value else active)


class Projection(nn.Linear):
    """The residual stream [B, T, E] from one width to another. Its initial weights keep the stream's variance."""

    def __init__(self, width: int, following: int):
        super().__init__(width, following, bias=False)


class Resize(nn.Module):
    """The residual stream [B, T, E] in another width: zeros for new channels, surplus ones dropped. No weights."""

    def __init__(self, width: int, following: int):
        super().__init__()
        self.more = following - width

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, self.more))


def width_change(config: MerinoConfig, width: int, following: int) -> nn.Module:
    if width == following:
        return nn.Identity()
    return Resize(width, following) if config.width_change == "padding" else Projection(width, following)


class BlockModule(nn.Module):
    """The change to the block's width, and the layers: one only where they are shared."""

    def __init__(self, config: MerinoConfig, index: int, before: int):
        super().__init__()
        arch = config.architecture
        block = arch.blocks[index]
        self.depth = block.depth
        self.enter = width_change(config, before, block.width)
        self.layers = nn.ModuleList(
            Layer(config, block, block.attends(use), tapped(arch, index, use))
            for use in range(1 if block.shared else block.depth)
        )

    def uses(self) -> list[Layer]:
        """Return the layer of each use, in order: `depth` entries."""
        layers = cast("list[Layer]", list(self.layers))
        return layers * self.depth if len(layers) < self.depth else layers


class MerinoPreTrainedModel(PreTrainedModel):
    config_class = MerinoConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projection):  # initializer_range shrinks the residual stream: to a sixth at 64 channels
            initialization.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, NgramTable):
            initialization.zeros_(module.weight)
        elif isinstance(module, Taps):
            initialization.copy_(module.weight, module.initial())


class MerinoForCausalLM(MerinoPreTrainedModel, GenerationMixin):
    """A decoder with a language-model head tied to its embedding."""

    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}

    def __init__(self, config: MerinoConfig):
        super().__init__(config)
        blocks = config.architecture.blocks
        first, last = blocks[0].width, blocks[-1].width
        self.embed_tokens = nn.Embedding(config.vocab_size, first)
        self.ngrams = nn.ModuleList(NgramTable(table.rows, first) for table in config.architecture.ngrams)
        before = [first, *(block.width for block in blocks)]
        self.blocks = nn.ModuleList(BlockModule(config, index, width) for index, width in enumerate(before[:-1]))
        self.norm = nn.RMSNorm(last, eps=config.rms_norm_eps)
        self.leave = width_change(config, last, first)
        self.lm_head = nn.Linear(first, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def initialize_matrices(self) -> None:
        """Draw the layers' matrices with a standard deviation of 1/sqrt(inputs), so that outputs are as large as inputs
        at every width (muP: Yang et al., arXiv 2203.03466).

        Attention's output and the FFN's second matrix are divided by the square root of the number of such matrices,
        two per layer (GPT-2: Radford et al. 2019, section 2.3). Otherwise the outputs of the first layers dominate the
        embedding.
        """
        layers = sum(block.depth for block in self.config.architecture.blocks)  # a shared layer counts at each use
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and weight is not self.embed_tokens.weight and not name.startswith(NGRAMS):
                weight.normal_(std=weight.shape[1] ** -0.5)
            if name.endswith(BRANCHES):
                weight.div_((2 * layers) ** 0.5)

    @deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,  # [B, T]
        attention_mask: Tensor | None = None,  # [B, cached + T], 1 where a token is
        position_ids: Tensor | None = None,  # [B, T]
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,  # [B, T, E of the first block], in place of input_ids
        labels: Tensor | None = None,  # [B, T], -100 where a token has no loss; shifted here
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T or logits_to_keep, V], the loss where labels are given, and the cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and cache is None and not self.training:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            cached = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(cached, cached + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask, cache=cache, position_ids=position_ids
        )
        if self.ngrams:
            x = x + self.ngram_rows(input_ids, position_ids, cache)
        cos, sin = rotary_table(position_ids, self.config.head_size, self.config.rope_theta)
        rotary = cos.to(x.dtype), sin.to(x.dtype)
        steps = torch.arange(TAPPED, device=x.device)[:, None, None]
        inside = (position_ids >= steps).to(x.dtype)[..., None]  # [TAPPED, 1 or B, T, 1]
        use = 0
        for block in self.blocks:
            assert isinstance(block, BlockModule)
            x = block.enter(x).to(x.dtype)  # under autocast the residual keeps its own precision
            for layer in block.uses():
                x = layer(x, rotary, mask, inside, cache, use)
                use += layer.cache_layers
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.leave(self.norm(x[:, keep])))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)

    def ngram_rows(self, ids: Tensor | None, positions: Tensor, cache: Cache | None) -> Tensor:
        """Return the sum of the tables' rows [B, T, E] for ids [B, T]. The ids are cached as the last layer."""
        if ids is None:
            raise ValueError("a model with n-gram tables needs input_ids")
        arch, tokens, known = self.config.architecture, ids.shape[1], ids
        if cache is not None:
            high, low = (part[:, None, :, None].float() for part in (ids // ID_PARTS, ids % ID_PARTS))  # [B, 1, T, 1]
            high, low = cache.update(high, low, len(arch.kv_layers) - 1)
            known = (high * ID_PARTS + low)[:, 0, :, 0].long()  # [B, cached + T]
        most = max(table.order for table in arch.ngrams)
        known = nn.functional.pad(known, (most - 1, 0))
        end = known.shape[1]
        history = [known[:, end - tokens - back : end - back] for back in range(most)]  # nearest first
        history = [one.where(positions >= back, arch.vocab) for back, one in enumerate(history)]
        rows = [one(table.index(history)) for table, one in zip(arch.ngrams, self.ngrams, strict=True)]
        return torch.stack(rows).sum(0)


AutoConfig.register(MerinoConfig.model_type, MerinoConfig, exist_ok=True)
AutoModelForCausalLM.register(MerinoConfig, MerinoForCausalLM, exist_ok=True)
