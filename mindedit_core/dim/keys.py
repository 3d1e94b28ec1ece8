"""SANA's published keys (NVlabs' layout, in which Draw-In-Mind publishes too) in those of diffusers' class.

Every key of the one has its place in the other: attention's fused projections are split, all else is renamed. The
configuration is told by shapes; only the widths of a head are not in them (32, and 112 or 72 in cross-attention).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint import CheckpointError

NULL = "y_embedder.y_embedding"  # the learned tokens of the unconditional branch; diffusers has no place for them
DROPPED = ("pos_embed", "logvar_linear.")  # made anew, or of training alone
BLOCK = r"^blocks\.(\d+)\."
RENAMED = (  # published -> diffusers
    (r"^x_embedder\.proj\.", "patch_embed.proj."),
    (r"^y_embedder\.y_proj\.fc([12])\.", r"caption_projection.linear_\1."),
    (r"^attention_y_norm\.", "caption_norm."),
    (r"^t_embedder\.mlp\.0\.", "time_embed.emb.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_embed.emb.timestep_embedder.linear_2."),
    (r"^t_block\.1\.", "time_embed.linear."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.scale_shift_table$", "scale_shift_table"),
    (BLOCK + r"scale_shift_table$", r"transformer_blocks.\1.scale_shift_table"),
    (BLOCK + r"attn\.([qk])_norm\.", r"transformer_blocks.\1.attn1.norm_\2."),
    (BLOCK + r"attn\.proj\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (BLOCK + r"cross_attn\.q_linear\.", r"transformer_blocks.\1.attn2.to_q."),
    (BLOCK + r"cross_attn\.([qk])_norm\.", r"transformer_blocks.\1.attn2.norm_\2."),
    (BLOCK + r"cross_attn\.proj\.", r"transformer_blocks.\1.attn2.to_out.0."),
    (BLOCK + r"mlp\.inverted_conv\.conv\.", r"transformer_blocks.\1.ff.conv_inverted."),
    (BLOCK + r"mlp\.depth_conv\.conv\.", r"transformer_blocks.\1.ff.conv_depth."),
    (BLOCK + r"mlp\.point_conv\.conv\.", r"transformer_blocks.\1.ff.conv_point."),
)
FUSED = (  # published -> the parts that lie one behind the other
    (BLOCK + r"attn\.qkv\.", ("attn1.to_q.", "attn1.to_k.", "attn1.to_v.")),
    (BLOCK + r"cross_attn\.kv_linear\.", ("attn2.to_k.", "attn2.to_v.")),
)
HEAD, CROSS_HEADS = 32, (112, 72)
WIDTH = (  # keys that tell it, on which axis, in how many parts: one damaged key among them is outvoted, and then named
    (r"x_embedder\.proj\.weight", 0, 1),
    (r"blocks\.\d+\.attn\.qkv\.weight", 1, 1),
    (r"final_layer\.linear\.weight", 1, 1),
)
MLP_WIDTH = (
    (r"blocks\.\d+\.mlp\.point_conv\.conv\.weight", 1, 1),
    (r"blocks\.\d+\.mlp\.inverted_conv\.conv\.bias", 0, 2),
    (r"blocks\.\d+\.mlp\.depth_conv\.conv\.bias", 0, 2),
)


class Piece(NamedTuple):
    """Where a diffusers key comes from: part `index` of `parts` of a published one, along the first axis."""

    source: str
    index: int = 0
    parts: int = 1

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        return (whole[0] // self.parts, *whole[1:])

    def cut(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.parts)[self.index] if self.parts > 1 else tensor


def pieces(keys: Iterator[str] | Mapping[str, Any], name: str) -> dict[str, Piece]:
    """diffusers key -> its piece, of all published keys. Raises CheckpointError for a key that has no place."""
    found: dict[str, Piece] = {}
    for key in keys:
        if key != NULL and not key.startswith(DROPPED):
            found |= _placed(key, name)
    return found


def _placed(key: str, name: str) -> dict[str, Piece]:
    for pattern, parts in FUSED:
        if match := re.match(pattern, key):
            rest = key[match.end() :]
            block = f"transformer_blocks.{match[1]}."
            return {f"{block}{part}{rest}": Piece(key, index, len(parts)) for index, part in enumerate(parts)}
    for pattern, new in RENAMED:
        renamed, count = re.subn(pattern, new, key)
        if count:
            return {renamed: Piece(key)}
    raise CheckpointError(
        f"{name} has the key {key}, which a SANA of Draw-In-Mind's kind has not; "
        "distilled ones (Sprint) and ControlNets are not supported"
    )


def from_published(shapes: Mapping[str, tuple[int, ...]], get: Callable[[str], Tensor], name: str) -> dict[str, Tensor]:
    """diffusers' state dict; parts of fused projections are views of what `get` gives."""
    return {key: piece.cut(get(piece.source)) for key, piece in pieces(shapes, name).items()}


def config_from(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Any]:
    """Arguments of diffusers' SanaTransformer2DModel for published keys and shapes.

    Raises CheckpointError, naming the key, where one that tells a size is missing or contradicts another.
    """
    try:
        _, in_channels, patch, _ = shapes["x_embedder.proj.weight"]
        out = shapes["final_layer.linear.weight"][0]
        caption = shapes["y_embedder.y_proj.fc1.weight"][1]
    except KeyError as error:
        raise CheckpointError(f"{name} lacks {error.args[0]}, so it is no whole SANA; fetch the file again") from None
    if shapes.get(NULL, (0, caption))[1] != caption:
        raise CheckpointError(
            f"{name}: y_embedder.y_proj.fc1.weight reads tokens of width {caption}, {NULL} has {shapes[NULL][1]}; "
            "one of them is damaged, fetch the file again"
        )
    inner, hidden = _agreed(shapes, WIDTH, name), _agreed(shapes, MLP_WIDTH, name)
    cross = next((width for width in CROSS_HEADS if inner % width == 0), HEAD)
    return {
        "in_channels": in_channels,
        "out_channels": out // patch**2,
        "num_attention_heads": inner // HEAD,
        "attention_head_dim": HEAD,
        "num_layers": 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
        "num_cross_attention_heads": inner // cross,
        "cross_attention_head_dim": cross,
        "cross_attention_dim": inner,
        "caption_channels": caption,
        "mlp_ratio": hidden / inner,
        "patch_size": patch,
        "sample_size": 32,
        "qk_norm": "rms_norm_across_heads" if any(re.search(r"attn\.[qk]_norm", key) for key in shapes) else None,
    }


def _agreed(shapes: Mapping[str, tuple[int, ...]], told: Sequence[tuple[str, int, int]], name: str) -> int:
    """The size that most of the keys tell which tell one."""
    votes = Counter(
        shape[axis] // parts
        for key, shape in shapes.items()
        for pattern, axis, parts in told
        if re.fullmatch(pattern, key)
    )
    if not votes:
        raise CheckpointError(f"{name} lacks every key like {told[0][0]}, so it is no whole SANA; fetch it again")
    return votes.most_common(1)[0][0]
