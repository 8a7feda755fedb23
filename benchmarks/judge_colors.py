"""Name colors and patterns of the judge's objects, from CIELAB distances and the directions of edges."""

from functools import cache

import numpy as np
from scipy import ndimage


TYPICAL = {
    "red": (215, 25, 35),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 40),
    "green": (40, 145, 60),
    "teal": (20, 160, 160),
    "blue": (40, 75, 215),
    "purple": (130, 45, 160),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
    "black": (22, 22, 26),
    "gray": (135, 137, 140),
    "white": (250, 250, 250),
}
NAMES = list(TYPICAL)
NUM_HUES = NAMES.index("black")  # the names before are hues, the others are neutral
SHADES = (1.0, 0.93, 0.86, 0.79)  # an object may be shaded
MAX_DISTANCE = 13.0  # CIELAB, to a shade of a typical color
MIN_HUE_SHARE, MIN_NEUTRAL_SHARE = 0.2, 0.45  # of an object, to be its color
MAX_AWAY = 45  # RGB, of a color from the line between two others
# Length of the edges within an object, as a multiple of the square root of its area: without a pattern, and with one.
MAX_PLAIN_EDGES, MIN_EDGES = 0.7, 1.3
# Second, fourth and sixth harmonic of the directions of edges, and whether the last two are signed.
PROTOTYPES = {
    "striped": (True, 0.9, 0.8, 0.65),
    "zigzag": (True, 0.46, -0.38, -0.52),
    "checkered": (False, 0.08, 0.65, 0.06),
    "polka-dotted": (False, 0.12, 0.09, 0.08),
}


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """Convert sRGB in bytes to CIELAB (D65): (..., 3)."""
    values = np.arange(256) / 255
    table = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = table[pixels] @ (matrix / np.array([[0.95047], [1.0], [1.08883]])).T
    roots = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


_SHADED = to_lab(
    np.array([[np.round(np.array(rgb) * shade) for shade in SHADES] for rgb in TYPICAL.values()]).astype(np.uint8)
)


@cache
def _name_table() -> np.ndarray:
    """Return the index of the color name of each RGB value in steps of 4, and -1 where none is near: (64, 64, 64)."""
    steps = np.arange(64, dtype=np.uint8) * 4 + 2
    names = []
    for red in steps:
        lab = to_lab(np.stack(np.broadcast_arrays(red, *np.meshgrid(steps, steps, indexing="ij")), axis=-1))
        distances = np.linalg.norm(lab[:, :, None, None] - _SHADED, axis=-1)  # (64, 64, names, shades)
        # A darker white is no white, and a darker gray could be anything.
        distances[:, :, NUM_HUES:, 1:] = np.inf
        distances = distances.min(-1)
        names.append(np.where(distances.min(-1) < MAX_DISTANCE, distances.argmin(-1), -1))
    return np.array(names)


def name_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return the index of the color name of each of `(n, 3)` pixels, and -1 where none is near."""
    return _name_table()[tuple(pixels.T // 4)]


def name_main_color(pixels: np.ndarray, mask: np.ndarray) -> tuple[str | None, np.ndarray | None, np.ndarray | None]:
    """Return the name of the main color of an object, where it has this color, and the color itself."""
    core = ndimage.binary_erosion(mask, iterations=1)
    if core.sum() < 30:
        return None, None, None
    names = np.full(mask.shape, -1)
    names[core] = name_pixels(pixels[core])
    shares = np.bincount(names[core] + 1, minlength=len(NAMES) + 1)[1:] / core.sum()
    hues, neutrals = shares[:NUM_HUES], shares[NUM_HUES:]
    first, second = np.sort(hues)[::-1][:2]
    if first >= MIN_HUE_SHARE and second < 0.35 * first:
        index = int(hues.argmax())
    else:
        first, second = np.sort(neutrals)[::-1][:2]
        if first < MIN_NEUTRAL_SHARE or second > 0.7 * first or hues.max() > 0.1:
            return None, None, None
        index = NUM_HUES + int(neutrals.argmax())
    main = names == index
    values = pixels[main]
    bright = values[values.sum(-1) >= np.median(values.sum(-1))]
    return NAMES[index], main, np.median(bright, axis=0)


def measure_second(pixels: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Measure how far pixels are from the main color to that of a pattern, white or black.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: 0 to 1 for each pixel, and whether its color is between the two.
    """
    bright = rgb @ (0.299, 0.587, 0.114) / 255 > 0.62
    way = np.array((34, 34, 40) if bright else (248, 248, 246)) - rgb
    share = (pixels - rgb) @ way / (way @ way)
    away = np.linalg.norm(pixels - rgb - np.clip(share, -0.3, 1)[..., None] * way, axis=-1)
    # Shades of the main color are on the way, too: a fifth of it.
    return np.clip((share - 0.4) / 0.4, 0, 1), away < MAX_AWAY


def name_pattern(pixels: np.ndarray, mask: np.ndarray, rgb: np.ndarray) -> str | None:
    """Name the pattern of an object, from the directions of the edges within it; `plain`, or None if it is unclear."""
    second, is_between = measure_second(pixels.astype(float), rgb)
    second = ndimage.gaussian_filter(second, 0.6)
    core = ndimage.binary_erosion(mask, iterations=3)
    core &= ~ndimage.binary_dilation(core & ~is_between, iterations=2)
    if core.sum() < 60:
        return None
    down, across = np.gradient(second)
    strength = np.hypot(down, across) * core
    edges = strength.sum() / np.sqrt(core.sum())
    share = float((second > 0.5)[core].mean())
    if edges < MAX_PLAIN_EDGES or share < 0.03:
        return "plain"
    if edges < MIN_EDGES or not 0.06 < share < 0.6:
        return None
    turns = np.exp(2j * np.arctan2(down, across))
    weights = strength**2
    first, *others = [complex((weights * turns**power).sum() / weights.sum()) for power in (1, 2, 3)]
    # In relation to the main direction: the edges of a zigzag lie on both sides of it, those of stripes along it.
    signed = [(other * (first.conjugate() / abs(first)) ** power).real for power, other in enumerate(others, start=2)]
    distances = sorted(
        (np.linalg.norm(np.subtract([abs(first), *(signed if is_signed else np.abs(others))], point)), name)
        for name, (is_signed, *point) in PROTOTYPES.items()
    )
    return distances[0][1] if distances[0][0] < 0.75 * distances[1][0] else None
