"""What to attach to a network: one configuration a method.

Fields have PEFT's names where PEFT has them; the specification's and MindFormers' names are taken too.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mindpet.utils.nearest import nearest_names

__all__ = [
    "AdapterConfig",
    "BitFitConfig",
    "IA3Config",
    "LoraConfig",
    "LowRankAdapterConfig",
    "PTuning2Config",
    "PeftConfig",
    "PrefixConfig",
    "TrainableTokensConfig",
    "VeraConfig",
]

_Size = Annotated[int, Field(gt=0, strict=True)]
_Whole = Annotated[int, Field(ge=0, strict=True)]
_Rate = Annotated[float, Field(ge=0, lt=1, strict=True)]
_Scale = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
_Name = Annotated[str, Field(min_length=1)]
_Names = tuple[_Name, ...]
_Switch = Annotated[bool, Field(strict=True)]
_Targets = _Name | Annotated[_Names, Field(min_length=1)] | None


def _named(default: Any, *names: str) -> Any:
    """Return a field that may also be given by other names; the first one is the field's own."""
    return Field(default=default, validation_alias=AliasChoices(*names))


def _none_for_empty(value: Any) -> Any:
    return () if value is None else value


def _name_of_start(value: Any) -> Any:
    return "default" if value is True else value


_Saved = Annotated[_Names, BeforeValidator(_none_for_empty)]


class PeftConfig(BaseModel):
    """What all configurations share.

    `target_modules`, where a method has it, is one of:

    - None: the architecture's own placement; a network of unknown architecture is refused.
    - A list. An entry is a cell's name (`query`), the end of its path (`attention.self.query`) or a pattern with `*`,
      `?` or `[...]` for either (`layer.[0-5].*.query`).
    - A string of letters, digits, `_` and dots: a name or the end of a path.
    - 'all-linear': every dense layer outside `modules_to_save`, without a language model's output layer.
    - Any other string: a regular expression for the whole path, as in PEFT.

    Every entry must match something.

    Attributes:
        modules_to_save: Names, path ends or patterns of cells that are trained and saved whole, such as a new head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    method: ClassVar[str]
    size_field: ClassVar[str | None] = None  # the field that says how large the method's parameters are
    capacity: ClassVar[str] = "max_rank"  # the argument of get_peft_model that leaves room for a larger one
    switched: ClassVar[frozenset[str]] = frozenset()  # fields in which the adapters of one network may differ

    modules_to_save: _Saved = ()

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_field(cls, given: Any) -> Any:
        if isinstance(given, dict):
            known = set(cls.model_fields) | {
                str(name)
                for field in cls.model_fields.values()
                if isinstance(field.validation_alias, AliasChoices)
                for name in field.validation_alias.choices
            }
            for name in given:
                if name not in known:
                    nearest = nearest_names(str(name), known)
                    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"it has {', '.join(sorted(known))}"
                    raise ValueError(f"{cls.__name__} has no field {name!r}; {hint}")
        return given

    @property
    def size(self) -> int:
        """How large the method's parameters are: the rank, or the number of tokens; 0 where there is no such number."""
        return 0 if self.size_field is None else getattr(self, self.size_field)

    def enlarged(self, size: int) -> PeftConfig:
        """Return a configuration that is the same but for its size, in every layer."""
        return self.model_copy(update={self.size_field: size} if self.size_field else {})


class LoraConfig(PeftConfig):
    """LoRA on chosen layers (arXiv:2106.09685): `W x` becomes `W x + lora_alpha / r * B A x`.

    The branch is zero at first, so that the network's output does not change. That holds for its variants too: rsLoRA
    (arXiv:2312.03732), DoRA (arXiv:2402.09353) and PiSSA (arXiv:2404.02948).

    Attributes:
        r: The rank, the number of rows of `A` and of columns of `B`; also `lora_rank`.
        lora_alpha: The scale's numerator.
        lora_dropout: Probability with which an input element of the branch is dropped in training, in [0, 1);
            an embedding has nothing to drop.
        target_modules: The dense layers, embeddings and convolutions to adapt; see `PeftConfig`. By default query and
            value of every attention.
        bias: Which biases are trained as well: 'none', 'all', with the shifts of normalisations as in PEFT, or
            'lora_only', those of the adapted layers.
        lora_a_init: How `A` starts: the name of a MindSpore initializer. None for uniform numbers, as
            in LoRA's own code. For an embedding it is zero, and `B` normal, as in PEFT.
        use_rslora: Whether the branch is scaled by `lora_alpha / sqrt(r)`, so that a large rank learns as fast as a
            small one.
        use_dora: Whether the length of each row of the weight is trained as well, and LoRA changes its direction
            (dense layers only).
        init_lora_weights: 'pissa' lets `A` and `B` start as the principal part of the weight and counts the change from
            there (dense layers only); 'default', or True as in PEFT, is LoRA's own start.
        rank_pattern: Other ranks for some of the layers. A key is the end of a path or a regular expression for it.
        alpha_pattern: Other values of `lora_alpha`, likewise.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "lora"
    size_field: ClassVar[str | None] = "r"
    switched: ClassVar[frozenset[str]] = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})

    r: _Size = _named(8, "r", "lora_rank")
    lora_alpha: _Scale = 8
    lora_dropout: _Rate = 0.0
    target_modules: _Targets = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_a_init: _Name | None = None
    use_rslora: _Switch = False
    use_dora: _Switch = False
    init_lora_weights: Annotated[Literal["default", "pissa"], BeforeValidator(_name_of_start)] = "default"
    rank_pattern: dict[_Name, _Size] = {}
    alpha_pattern: dict[_Name, _Scale] = {}
    modules_to_save: _Saved = ()

    @model_validator(mode="after")
    def _one_start(self) -> LoraConfig:
        if self.init_lora_weights == "pissa" and (self.use_dora or self.lora_a_init is not None):
            other = "use_dora" if self.use_dora else "lora_a_init"
            raise ValueError(f"init_lora_weights is 'pissa' and {other} is set too; give one of them")
        return self

    @property
    def size(self) -> int:
        """The largest rank of any layer."""
        return max(self.r, *self.rank_pattern.values(), 0)

    def enlarged(self, size: int) -> LoraConfig:
        """Return a configuration that is the same but for its rank, in every layer."""
        return self.model_copy(update={"r": size, "rank_pattern": {}})

    def scale_numerator(self, rank: int, alpha: float) -> float:
        """Return by what number, divided by the rank, a branch of this rank and `lora_alpha` is multiplied."""
        return alpha * math.sqrt(rank) if self.use_rslora else alpha


class AdapterConfig(PeftConfig):
    """Adapters after chosen dense layers (arXiv:1902.00751): `y` becomes `y + W_up f(W_down y + b_down) + b_up`.

    The up-projection is zero at first, so that the network's output does not change.

    Attributes:
        bottleneck_size: The size between the two projections.
        non_linearity: The name of the activation between them.
        up_init: How the up-projection's weight starts: the name of a MindSpore initializer. With any
            but 'zeros', the adapter acts at once; the specification's own layer starts with 'normal'.
        target_modules: The dense layers that adapters follow; see `PeftConfig`. By default the attention's output
            projection and the second dense layer of the feed-forward network.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "adapter"
    size_field: ClassVar[str | None] = "bottleneck_size"
    switched: ClassVar[frozenset[str]] = frozenset({"bottleneck_size"})

    bottleneck_size: _Size = 64
    non_linearity: _Name = "gelu"
    up_init: _Name = "zeros"
    target_modules: _Targets = None


class LowRankAdapterConfig(PeftConfig):
    """Low-rank adapters after chosen dense layers (arXiv:2106.04647): an adapter whose matrices are thin products.

    The matrices start as the specification says, so that attaching changes the network's output; with
    `up_init='zeros'` it does not.

    Attributes:
        reduction_factor: The bottleneck has the layer's size divided by it.
        low_rank_size: The inner size of the thin products.
        low_rank_w_init: How the four matrices start: the name of a MindSpore initializer.
        up_init: How the last of the four starts instead; None for like the others.
        non_linearity: The name of the activation in the bottleneck.
        target_modules: The dense layers that adapters follow; see `PeftConfig`. By default the attention's output
            projection and the second dense layer of the feed-forward network.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "low_rank_adapter"
    size_field: ClassVar[str | None] = "low_rank_size"
    switched: ClassVar[frozenset[str]] = frozenset({"low_rank_size"})

    reduction_factor: _Size = 32
    low_rank_size: _Size = 1
    low_rank_w_init: _Name = "xavier_uniform"
    up_init: _Name | None = None
    non_linearity: _Name = "gelu"
    target_modules: _Targets = None


class PrefixConfig(PeftConfig):
    """Prefix tuning (arXiv:2101.00190): trained keys and values before those of every attention.

    The prefix of each layer is `W_2 tanh(W_1 table + b_1) + b_2`. Attaching changes the network's output.

    Attributes:
        num_virtual_tokens: The number of tokens before each layer's keys; also `prefix_token_num`.
        encoder_hidden_size: The size between the two projections; also `mid_dim`.
        embed_dim: The number of columns of the table; None for the size of the keys over all heads.
        dropout_rate: Probability with which an element of the prefix is dropped in training, in [0, 1).
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "prefixtuning"
    size_field: ClassVar[str | None] = "num_virtual_tokens"
    capacity: ClassVar[str] = "max_tokens"
    switched: ClassVar[frozenset[str]] = frozenset({"num_virtual_tokens"})

    num_virtual_tokens: _Size = _named(16, "num_virtual_tokens", "prefix_token_num")
    encoder_hidden_size: _Size = _named(512, "encoder_hidden_size", "mid_dim")
    embed_dim: _Size | None = None
    dropout_rate: _Rate = 0.1


class PTuning2Config(PeftConfig):
    """P-Tuning v2 (arXiv:2110.07602): trained keys and values before those of every attention, from one table.

    With `prefix_projection` the table passes through two dense layers. Attaching changes the network's output.

    Attributes:
        num_virtual_tokens: The number of tokens before each layer's keys; also `pre_seq_len` or `prefix_token_num`.
        prefix_projection: Whether the table passes through two dense layers.
        encoder_hidden_size: The size between them; also `projection_dim`.
        dropout_prob: Probability with which an element of the prefix is dropped in training, in [0, 1).
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "ptuning2"
    size_field: ClassVar[str | None] = "num_virtual_tokens"
    capacity: ClassVar[str] = "max_tokens"
    switched: ClassVar[frozenset[str]] = frozenset({"num_virtual_tokens"})

    num_virtual_tokens: _Size = _named(16, "num_virtual_tokens", "pre_seq_len", "prefix_token_num")
    prefix_projection: Annotated[bool, Field(strict=True)] = False
    encoder_hidden_size: _Size = _named(512, "encoder_hidden_size", "projection_dim")
    dropout_prob: _Rate = 0.0


class BitFitConfig(PeftConfig):
    """BitFit (arXiv:2106.10199): train the parameters whose names end in `bias`, and nothing else.

    Attributes:
        target_modules: The cells whose biases are trained; see `PeftConfig`. By default all of the network.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "bitfit"

    target_modules: _Targets = None


class IA3Config(PeftConfig):
    """IA3 on chosen dense layers (arXiv:2205.05638): one trained factor for each output, or input, of a layer.

    All factors are 1 at first, so that the network's output does not change.

    Attributes:
        target_modules: The dense layers to adapt; see `PeftConfig`. By default key, value and the feed-forward layers.
        feedforward_modules: Which of them have their input scaled instead of their output: written like
            `target_modules`. None: the architecture's own where `target_modules` is None too, else no layer.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "ia3"
    switched: ClassVar[frozenset[str]] = frozenset({"feedforward_modules"})

    target_modules: _Targets = None
    feedforward_modules: _Targets = None


class VeraConfig(PeftConfig):
    """VeRA on chosen dense layers (arXiv:2310.11454): `W x` becomes `W x + b * (B (d * (A x)))`.

    `A` and `B` are random, frozen, and the same for all layers, which take as many of their columns and rows as they
    need; the vectors `b` and `d` are trained. `b` is zero at first, so that the network's output does not change.

    Attributes:
        r: The rank, the number of rows of `A` and of columns of `B`.
        vera_dropout: Probability with which an input element of the branch is dropped in training, in [0, 1).
        d_initial: What the vectors `d` start as.
        projection_prng_key: The seed of `A` and `B`, which gives the same numbers everywhere, in PEFT too.
        target_modules: The dense layers to adapt; see `PeftConfig`. By default query and value of every attention.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "vera"
    size_field: ClassVar[str | None] = "r"
    switched: ClassVar[frozenset[str]] = frozenset({"r", "d_initial", "projection_prng_key"})

    r: _Size = 256
    vera_dropout: _Rate = 0.0
    d_initial: Annotated[float, Field(allow_inf_nan=False, strict=True)] = 0.1
    projection_prng_key: _Whole = 0
    target_modules: _Targets = None


class TrainableTokensConfig(PeftConfig):
    """A few tokens of chosen embeddings are trained, the others stay as they are.

    The trained rows start as the table's own, so that the network's output does not change. A head that is tied to the
    embedding computes with them too (`mindpet.delta.trainable_tokens.TiedTokens`); one that cannot is refused.

    Attributes:
        token_indices: The tokens, each once.
        target_modules: The embeddings; see `PeftConfig`. By default that of the words.
        modules_to_save: Cells that are trained and saved whole.
    """

    method: ClassVar[str] = "tokens"
    size_field: ClassVar[str | None] = "token_indices"
    capacity: ClassVar[str] = "max_tokens"
    switched: ClassVar[frozenset[str]] = frozenset({"token_indices"})

    token_indices: tuple[_Whole, ...] = ()
    target_modules: _Targets = None

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.token_indices)

    def enlarged(self, size: int) -> TrainableTokensConfig:
        """Return a configuration with as many tokens: these, and others of the table to fill up."""
        others = [token for token in range(size) if token not in self.token_indices]
        return self.model_copy(update={"token_indices": (*self.token_indices, *others)[:size]})
