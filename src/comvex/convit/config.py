"""What a ConViT looks like: the validated configuration and the six sizes of the paper (its Table 1)."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from comvex.errors import UserError

# d'Ascoli et al. 2021, Table 1: token dimension and heads. Heads are 48 wide, 64 in the "plus" sizes.
PRESETS: dict[str, tuple[int, int]] = {
    "ConViT_Ti": (192, 4),
    "ConViT_Ti_plus": (256, 4),
    "ConViT_S": (432, 9),
    "ConViT_S_plus": (576, 9),
    "ConViT_B": (768, 16),
    "ConViT_B_plus": (1024, 16),
}
PRESET_DEPTH = (10, 2)
"""Local and non-local layers of every size."""

GLOBAL_POOLS = ("token", "avg", "")
HEAD_FIELDS = ("num_classes", "pred_act_fnc_name", "global_pool")
FLAGS = (
    "pre_norm", "position_embedding", "use_gpsa", "train_gates", "convolutional_init", "freeze_positional",
    "pad_to_patch",
)  # fmt: skip
NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"}
"""What torch.nn keeps among its activations but is none that maps each number to one, without arguments."""


def resolve_heads(dim: int, *, heads: int | None, head_dim: int | None) -> int:
    """The number of heads, from either ``heads`` or ``head_dim``; the heads together are always ``dim`` wide.

    Raises ``ValueError`` if neither is given, if both are and disagree, or if ``dim`` is no multiple of what is given.
    """
    if heads is None and head_dim is None:
        raise UserError(f"heads and head_dim are both None: give one of them (heads x head_dim = dim = {dim}).")
    for name, value in (("heads", heads), ("head_dim", head_dim)):
        if value is not None:
            check_integer(name, value, at_least=1)
            if dim % value:
                raise UserError(f"{name} is {value}: it must divide dim = {dim} without remainder.")
    if heads is not None and head_dim is not None and heads * head_dim != dim:
        raise UserError(
            f"heads = {heads} and head_dim = {head_dim} disagree: their product must be dim = {dim}; one is enough."
        )
    if heads is not None:
        return heads
    assert head_dim is not None
    return dim // head_dim


def check_integer(name: str, value: Any, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"{name} is {value!r}: it must be a whole number of at least {at_least}.")


def check_rate(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise UserError(f"{name} is {value!r}: it must lie in [0, 1).")


def as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or as a pair."""
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class ConViTConfig:
    """Everything that defines a ConViT; frozen, validated when made, comparable, and portable as JSON.

    The class methods ``ConViT_Ti()`` ... ``ConViT_B_plus()`` give the paper's sizes, to the letter of the published
    checkpoints; any field can be overridden: ``ConViTConfig.ConViT_S(num_classes=10, image_size=(256, 128))``.

    Raises ``ValueError`` with the field, the value and what is allowed.
    """

    image_size: int | tuple[int, int] = 224
    """Native picture size in pixels, one number or (height, width); other sizes work at each call."""
    image_channel: int = 3
    """Number of input channels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    num_local_layers: int = 10
    """GPSA layers on the patch tokens, before the class token is prepended."""
    num_nonlocal_layers: int = 2
    """Self-attention layers after the class token is prepended."""
    dim: int = 192
    """Width of a token."""
    num_classes: int = 1000
    """Number of classes; 0 means no head: the classifier then returns the class token."""
    locality_strength: float = 1.0
    """The paper's alpha: the precision of the positional kernels at the start is twice this, in 1 / patch^2."""
    heads: int | None = None
    """Attention heads. Give this or ``head_dim``."""
    head_dim: int | None = None
    """Width of a head. Give this or ``heads``."""
    pre_norm: bool = False
    """x + f(LN(x)) with a final norm if true, LN(x + f(x)) without one if false."""
    ff_dim: int = 2048
    """Hidden width of the feed-forward layers."""
    ff_dropout: float = 0.0
    """Dropout rate inside the feed-forward layers."""
    attention_dropout: float = 0.0
    """Rate at which whole heads are dropped, per picture (``nn.Dropout2d`` on the attention map)."""
    token_dropout: float = 0.0
    """Dropout rate on the tokens after the patch embedding."""
    pred_act_fnc_name: str | None = "ReLU"
    """Activation (a class of ``torch.nn``) of the head Linear, activation, LayerNorm, Linear; None: one Linear."""

    _: KW_ONLY

    position_embedding: bool = False
    """Whether a learned position embedding is added to the patch tokens."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    drop_path: float = 0.0
    """Stochastic depth: rate of the last layer, growing linearly from 0 at the first."""
    use_gpsa: bool = True
    """False puts plain self-attention in the local layers too: the baseline without the inductive bias (Table 3)."""
    train_gates: bool = True
    """False freezes the gating parameters at 0, so that each head gives content and position half of its attention
    for good: GPSA without gating (Table 3)."""
    convolutional_init: bool = True
    """False starts the positional weights and the value matrix as any other matrix, not as a convolution (Table 3)."""
    init_std: float = 0.02
    """Standard deviation of the truncated normal that all matrices of the layers start from. 0.02 is the paper's, for
    tokens some hundred numbers wide; narrow ones learn faster from 1 / sqrt(dim)."""
    freeze_positional: bool = False
    """True leaves all of the gated positional self-attention as it is initialised, from its queries to its projection:
    in the local layers only norms and feed-forward learn (Table 3)."""
    pad_to_patch: bool = False
    """True takes pictures of any size, padded with zeros on the right and bottom to whole patches."""
    global_pool: str = "token"
    """What the head sees: "token" (the class token, which meets the patches in the non-local layers only), "avg" (the
    mean of the patches), "" (all tokens)."""

    def __post_init__(self) -> None:
        if isinstance(self.image_size, list):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        self._check_sizes()
        for name in ("num_local_layers", "num_nonlocal_layers", "num_classes"):
            check_integer(name, getattr(self, name), at_least=0)
        if self.num_local_layers + self.num_nonlocal_layers == 0:
            raise UserError("num_local_layers and num_nonlocal_layers are both 0: at least one layer is needed.")
        for name in ("image_channel", "dim", "ff_dim"):
            check_integer(name, getattr(self, name), at_least=1)
        resolve_heads(self.dim, heads=self.heads, head_dim=self.head_dim)
        for name in ("ff_dropout", "attention_dropout", "token_dropout", "drop_path"):
            check_rate(name, getattr(self, name))
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} is {getattr(self, name)!r}: it must be True or False.")
        for name in ("locality_strength", "norm_eps", "init_std"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise UserError(f"{name} is {value!r}: it must be a positive number.")
        if self.global_pool not in GLOBAL_POOLS:
            raise UserError(
                f"global_pool is {self.global_pool!r}: it must be one of {', '.join(map(repr, GLOBAL_POOLS))}."
            )
        self._check_activation()

    def _check_sizes(self) -> None:
        check_integer("patch_size", self.patch_size, at_least=1)
        size = self.image_size
        if not isinstance(size, int) and not (isinstance(size, tuple) and len(size) == 2):
            raise UserError(f"image_size is {size!r}: it must be a whole number or (height, width).")
        for side in as_pair(size):
            check_integer("image_size", side, at_least=1)
            if side % self.patch_size:
                raise UserError(
                    f"image_size is {size}: each side must be a multiple of patch_size = {self.patch_size}."
                )

    def _check_activation(self) -> None:
        if self.pred_act_fnc_name is None:
            return
        from torch.nn.modules import activation

        allowed = sorted(set(activation.__all__) - NOT_ELEMENTWISE)
        if self.pred_act_fnc_name not in allowed:
            near = difflib.get_close_matches(str(self.pred_act_fnc_name), allowed, n=1)
            raise UserError(
                f"pred_act_fnc_name is {self.pred_act_fnc_name!r}: it must be None or the name of an activation in "
                f"torch.nn, such as {near[0] if near else 'ReLU'!r}."
            )

    @property
    def num_heads(self) -> int:
        """Heads of each layer, whichever of ``heads`` and ``head_dim`` was given."""
        return resolve_heads(self.dim, heads=self.heads, head_dim=self.head_dim)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches at the native picture size."""
        height, width = as_pair(self.image_size)
        return height // self.patch_size, width // self.patch_size

    def backbone_arguments(self) -> dict[str, Any]:
        """The fields that ``ConViTBackbone`` takes: all but those of the head."""
        values = dataclasses.asdict(self)
        return {name: values[name] for name in values if name not in HEAD_FIELDS}

    def to_json(self, file: str | Path | None = None) -> str:
        """The configuration as JSON text, also written to ``file`` if one is given."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        if file is not None:
            Path(file).write_text(text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> ConViTConfig:
        """The configuration in JSON text, or in a file of it.

        Raises ``ValueError`` if the text is no JSON object or has a field that no ConViT has.
        """
        is_file = isinstance(source, Path) or not source.lstrip().startswith("{")
        try:
            values = json.loads(Path(source).read_text() if is_file else str(source))
        except OSError as error:
            raise UserError(f"Cannot read the configuration file {source}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"The configuration {source if is_file else 'text'} is not valid JSON: {error}.") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConViTConfig:
        """The configuration with these fields; what is left out has its default."""
        if not isinstance(values, dict):
            raise UserError(
                f"A configuration is {type(values).__name__}: it must be an object of field names and values."
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; the fields are {', '.join(known)}."
                raise UserError(f"A ConViT configuration has no field {name!r}{hint}")
        return cls(**values)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> ConViTConfig:
        """One of the six sizes by its name, such as ``"ConViT_Ti"``; any field can be overridden.

        The architecture is the paper's and the published checkpoints': pre-norm, epsilon 1e-6, learned position
        embedding, one Linear as head; ``ff_dim`` is 4 x ``dim`` unless given.
        """
        if name not in PRESETS:
            lower = {preset.lower(): preset for preset in PRESETS}
            near = difflib.get_close_matches(name.lower(), lower, n=1)
            hint = f"did you mean {lower[near[0]]!r}? The" if near else "the"
            raise UserError(f"There is no preset {name!r}: {hint} presets are {', '.join(PRESETS)}.")
        dim, heads = PRESETS[name]
        dim = overrides.get("dim", dim)
        check_integer("dim", dim, at_least=1)
        if overrides.get("head_dim") is not None and "heads" not in overrides:
            overrides["heads"] = None
        values: dict[str, Any] = {
            "dim": dim,
            "heads": heads,
            "pre_norm": True,
            "ff_dim": 4 * dim,
            "position_embedding": True,
            "pred_act_fnc_name": None,
        }
        return cls.from_dict(values | overrides)

    @classmethod
    def ConViT_Ti(cls, **overrides: Any) -> ConViTConfig:
        """dim 192, 4 heads: 6 M parameters."""
        return cls.from_preset("ConViT_Ti", **overrides)

    @classmethod
    def ConViT_Ti_plus(cls, **overrides: Any) -> ConViTConfig:
        """dim 256, 4 heads: 10 M parameters."""
        return cls.from_preset("ConViT_Ti_plus", **overrides)

    @classmethod
    def ConViT_S(cls, **overrides: Any) -> ConViTConfig:
        """dim 432, 9 heads: 28 M parameters."""
        return cls.from_preset("ConViT_S", **overrides)

    @classmethod
    def ConViT_S_plus(cls, **overrides: Any) -> ConViTConfig:
        """dim 576, 9 heads: 49 M parameters."""
        return cls.from_preset("ConViT_S_plus", **overrides)

    @classmethod
    def ConViT_B(cls, **overrides: Any) -> ConViTConfig:
        """dim 768, 16 heads: 87 M parameters."""
        return cls.from_preset("ConViT_B", **overrides)

    @classmethod
    def ConViT_B_plus(cls, **overrides: Any) -> ConViTConfig:
        """dim 1024, 16 heads: 153 M parameters."""
        return cls.from_preset("ConViT_B_plus", **overrides)


def width_of_preset(config: ConViTConfig) -> str | None:
    """The paper's size that has the width, heads and feed-forward layers of a config; None if there is none."""
    for name, width in PRESETS.items():
        if width == (config.dim, config.num_heads) and config.ff_dim == 4 * config.dim:
            return name
    return None
