"""Draws and paints what is behind the objects: a place, a surface or a photograph."""

import random

from fusion_vlm.synthesis.scenes.canvas import Canvas
from fusion_vlm.synthesis.scenes.indoors import INDOORS, ROOM_LOOK_ALIKES, paint_indoors
from fusion_vlm.synthesis.scenes.outdoors import LOOK_ALIKES, OUTDOORS, TIMELESS, paint_outdoors
from fusion_vlm.synthesis.scenes.photos import PHOTO_LOOK_ALIKES, PHOTOS, paint_photo
from fusion_vlm.synthesis.scenes.scene import Background
from fusion_vlm.synthesis.scenes.surfaces import SURFACES, paint_surface


PLACES = (*OUTDOORS, *INDOORS)
TIMES = ("day", "sunset", "night")
PHOTO_SHARE = 0.15  # of the backgrounds that are no places
SKY_LOOK_ALIKES = ("circle", "cloud", "crescent", "star")  # of sun, clouds, moon and stars


def draw_place(rng: random.Random, name: str | None = None) -> Background:
    """Draw a place, or draw a place of a given name again."""
    name = name or rng.choice(PLACES)
    time = rng.choice(TIMES) if name in OUTDOORS and name not in TIMELESS else None
    return Background("place", name, rng.getrandbits(32), time)


def draw_surface(rng: random.Random) -> Background:
    """Draw a surface or a photograph, where nothing can be confused with an object."""
    if rng.random() < PHOTO_SHARE:
        return Background("photo", rng.choice(PHOTOS), rng.getrandbits(32))
    return Background("surface", rng.choice(list(SURFACES)), rng.getrandbits(32))


def draw_background(rng: random.Random) -> Background:
    """Draw a place, a surface or a photograph."""
    return draw_place(rng) if rng.random() < 0.5 else draw_surface(rng)


def list_look_alikes(background: Background) -> set[str]:
    """Return the nouns that something in a background could be taken for."""
    if not background.is_place:
        return set(PHOTO_LOOK_ALIKES.get(background.name, ()))
    names = {**LOOK_ALIKES, **ROOM_LOOK_ALIKES}[background.name]
    return {*names, *(SKY_LOOK_ALIKES if background.time else ())}


def paint_background(canvas: Canvas, background: Background):
    """Paint a background; equal backgrounds give equal pixels."""
    rng = random.Random(background.seed)
    if background.kind == "photo":
        paint_photo(canvas, background.name, rng)
    elif background.kind == "surface":
        paint_surface(canvas, background.name, rng)
    elif background.name in INDOORS:
        paint_indoors(canvas, background.name, rng)
    else:
        paint_outdoors(canvas, background.name, background.time, rng)
