"""Reading `Geometry` from the fields that most families name alike, and what a family is told beside config.json."""

from collections.abc import Collection
from dataclasses import dataclass

from nanovllm.architectures.config_fields import Config, count, optional_count
from nanovllm.architectures.errors import ArchitectureError
from nanovllm.architectures.ops import AttentionSpec, Geometry
from nanovllm.architectures.rope import Rope, longest_context, rope_from_config

__all__ = ["Context", "Windows", "attention_spec", "layer_windows", "read_geometry", "read_head_dim"]

Windows = tuple[int | None, ...]
"""The sliding window of every layer, in tokens; None where a layer sees all."""

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a decoder depends on beside config.json.

    max_model_len: tokens that the model is built for; None: as many as the config allows. tensor_names: those of the
    checkpoint, for families whose weights come in several layouts; empty: the layout on the hub.
    """

    max_model_len: int | None = None
    tensor_names: Collection[str] = ()


def read_geometry(config: Config, context: Context, model_type: str, *, rope: Rope | None = None) -> Geometry:
    """The sizes of a decoder, by Llama's names of the fields. rope: given where it is not the config's one for all.

    Raises `ArchitectureError`.
    """
    num_heads = count(config, "num_attention_heads")
    num_kv_heads = count(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ArchitectureError(
            f"num_attention_heads ({num_heads}) is not a multiple of num_key_value_heads ({num_kv_heads})."
        )
    head_dim = read_head_dim(config)
    return Geometry(
        model_type=model_type,
        vocab_size=count(config, "vocab_size"),
        hidden_size=count(config, "hidden_size"),
        num_layers=count(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=longest_context(config),
        rope=rope or rope_from_config(config, head_dim, max_model_len=context.max_model_len),
    )


def read_head_dim(config: Config) -> int:
    """head_dim, or hidden_size over heads where it is absent."""
    hidden_size, num_heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden_size % num_heads:
        raise ArchitectureError(
            f"head_dim is absent and hidden_size ({hidden_size}) is no multiple of num_attention_heads {num_heads}."
        )
    return count(config, "head_dim", hidden_size // num_heads)


def layer_windows(
    config: Config, num_layers: int, *, default: int | None = None, full: Collection[int] = ()
) -> Windows:
    """The window of every layer: sliding_window where layer_types says "sliding_attention", none where it says
    "full_attention"; without layer_types every layer slides that is not in `full`.

    default: sliding_window where the field is missing (null means none). Raises `ArchitectureError`.
    """
    types = config.get("layer_types")
    if types is None:
        types = [_FULL if layer in full else _SLIDING for layer in range(num_layers)]
    if not isinstance(types, list | tuple) or len(types) < num_layers or not {_FULL, _SLIDING}.issuperset(types):
        raise ArchitectureError(
            f"layer_types is {types!r}; it must name one of {_FULL!r}, {_SLIDING!r} for each of {num_layers} layers."
        )
    window = optional_count(config, "sliding_window", default)
    return tuple(window if kind == _SLIDING else None for kind in types[:num_layers])


def attention_spec(
    geometry: Geometry,
    layer: int,
    *,
    scale: float | None = None,
    rope: Rope | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> AttentionSpec:
    """Attention of one layer. scale: by default 1 / sqrt(head_dim); rope: by default the geometry's."""
    return AttentionSpec(
        layer=layer,
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        scale=geometry.head_dim**-0.5 if scale is None else scale,
        rope=rope or geometry.rope,
        window=window,
        softcap=softcap,
    )
