"""
Draws scenes exactly: the pixels show what the scene says.

A scene is drawn at twice the size and reduced, so that edges are blended. `masks.py` paints the same outlines again
and counts how much of each object can be seen.
"""

from PIL import Image

from fusion_vlm.synthesis.documents.draw import draw_page
from fusion_vlm.synthesis.documents.page import Page, is_page
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.scenes.backgrounds import paint_background
from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.lettering import write_letters
from fusion_vlm.synthesis.scenes.scene import Scene


SUPERSAMPLING = 2
MIN_SIDE = 128  # pixels; below, neither words nor patterns can be read
FRAME = (196, 198, 202)  # color around the two images of a contrast


class PillowRenderer:
    """
    Draws the scenes of a sample.

    Args:
        size (`int`): side of the image in pixels. A contrast has twice that side, for two images of about `size`.

    Raises:
        ValueError: if the side is too small for words to be read.
    """

    name = "pillow"
    draws_scenes = True

    def __init__(self, size: int = 336):
        if size < MIN_SIDE:
            raise ValueError(f"The side of the image is {size} pixels, expected at least {MIN_SIDE}.")
        self.size = size

    def __call__(self, sample: Sample) -> Image.Image:
        """
        Draw a sample as a square RGB image. Equal samples give equal pixels.

        Raises:
            ValueError: if the sample has no scene.
        """
        if len(sample.scenes) == 1 and is_page(sample.scenes[0]):
            return draw_page(Page.from_dict(sample.scenes[0]), self.size)
        scenes = [Scene.from_dict(scene) for scene in sample.scenes]
        if not 1 <= len(scenes) <= 2:
            raise ValueError(
                f"The sample {sample.id} has {len(scenes)} scenes, expected one or two: this renderer draws the scene"
                " grammar. Render other captions with an image model."
            )
        if len(scenes) == 1:
            return draw_scene(scenes[0], self.size)
        gap = self.size // 20
        return paste_sides(*(draw_scene(scene, self.size - gap) for scene in scenes), gap, 2 * self.size)


def paste_sides(left: Image.Image, right: Image.Image, gap: int, side: int) -> Image.Image:
    """
    Paste two images of one size beside each other into the middle of a square.

    FUSION resizes every image to a square, so a wide image of the two would be distorted.

    Args:
        left (`Image`), right (`Image`)
        gap (`int`): pixels between them.
        side (`int`): side of the square in pixels.
    """
    image = Image.new("RGB", (side, side), FRAME)
    margin, top = (side - gap - 2 * left.width) // 2, (side - left.height) // 2
    image.paste(left, (margin, top))
    image.paste(right, (margin + left.width + gap, top))
    return image


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """Draw a scene as an RGB image of `size` pixels a side."""
    canvas = Canvas(Image.new("RGB", (size * SUPERSAMPLING,) * 2))
    paint_background(canvas, scene.background)
    for thing in scene.objects:
        canvas.paint_object(thing)
    for sign in scene.signs:
        canvas.paint_sign(sign, write_letters)
    return canvas.image.reduce(SUPERSAMPLING)
