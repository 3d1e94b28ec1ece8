"""Where Qwen2.5-VL thinks a token stands: time, height and width (M-RoPE, arXiv 2502.13923, section 2.1.2)."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor


def turn_positions(before: int, grid: tuple[int, int] | None, after: int) -> Tensor:
    """int[3, L] of a text of `before` tokens, a picture of grid (h, w) tokens, and `after` tokens of text.

    Text counts on in all three; a picture stands at one time and takes as many steps as its longer side has tokens.
    grid None: no picture.

    >>> turn_positions(1, (1, 2), 1).tolist()
    [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    """
    texts = [repeat(torch.arange(before), "l -> c l", c=3)]
    if grid is not None:
        height, width = grid
        rows = repeat(torch.arange(height), "h -> (h w)", w=width)
        columns = repeat(torch.arange(width), "w -> (h w)", h=height)
        texts.append(rearrange([torch.zeros_like(rows), rows, columns], "c l -> c l") + before)
    first = before + (max(grid) if grid else 0)
    return torch.cat([*texts, repeat(torch.arange(first, first + after), "l -> c l", c=3)], dim=1)
