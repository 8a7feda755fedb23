"""Patterns as masks: where an object shows a second color."""

import numpy as np
from PIL import Image


def draw_pattern(pattern: str, side: int, period: float, angle: float) -> Image.Image:
    """
    Draw where a pattern has its second color, two fifths of the area at most.

    Args:
        pattern (`str`): one of `PATTERNS` but `plain`.
        side (`int`): side of the image in pixels.
        period (`float`): pixels after which the pattern comes again.
        angle (`float`): rotation in degrees.

    Returns:
        `PIL.Image.Image`: mode `L`, 255 for the second color.
    """
    turn = np.deg2rad(angle)
    down, across = np.mgrid[:side, :side].astype(np.float32) - side / 2
    u = (across * np.cos(turn) + down * np.sin(turn)) / period
    v = (down * np.cos(turn) - across * np.sin(turn)) / period
    if pattern == "striped":
        second = u % 1 < 0.4
    elif pattern == "zigzag":
        second = (v + 0.7 * np.abs(u % 1 - 0.5)) % 1 < 0.4
    elif pattern == "checkered":
        # Boxes of the second color are a little smaller, so that the main color has the larger share.
        even, odd = (u % 1 < 0.46) & (v % 1 < 0.46), (u % 1 > 0.54) & (v % 1 > 0.54)
        second = even | odd
    else:
        row = np.floor(v)
        second = ((u + row % 2 / 2) % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.29**2
    return Image.fromarray(second.astype(np.uint8) * 255)
