"""Captions and descriptions of whole scenes."""

from fusion_vlm.synthesis.scenes.english import capitalize, count_noun, join, list_looks, look, with_article
from fusion_vlm.synthesis.scenes.scene import Background, Scene, SceneObject, Sign


SURFACE_NAMES = {
    "plain": "a plain background",
    "gradient": "a background with a gradient",
    "paper": "a grainy background",
    "clouds": "a mottled background",
    "ruled paper": "a lined page",
    "planks": "a wall of boards",
    "tiles": "a tiled wall",
    "wallpaper": "striped wallpaper",
    "soft lights": "a blurred background",
    "waves": "a wavy background",
    "table": "a tabletop",
}
TIMES = {"day": " by day", "sunset": " at sunset", "night": " at night", None: ""}
RELATION_WORDS = {"behind": "partly hidden behind", "inside": "inside", "touching": "touching", "between": "between"}
BORDER_WIDTH = 0.04  # of the thirds, where neither name would be clear
THIRDS = (("upper left", "top", "upper right"), ("left", "center", "right"), ("lower left", "bottom", "lower right"))


def name_background(background: Background) -> str:
    """Return a background with its article, and the time of day of a place."""
    if background.is_place:
        return background.name + TIMES[background.time]
    return SURFACE_NAMES.get(background.name, "a photograph")


def name_third(thing: SceneObject | Sign) -> str:
    """Return the part of the image that a center is in, with its preposition; a larger part near a border."""
    (row, row_clear), (column, column_clear) = (
        (min(2, int(value * 3)), min(abs(value - 1 / 3), abs(value - 2 / 3)) >= BORDER_WIDTH)
        for value in (thing.y, thing.x)
    )
    if row_clear and column_clear:
        place = THIRDS[row][column]
        return f"{'at' if place in ('top', 'bottom') else 'on' if row == 1 and column != 1 else 'in'} the {place}"
    if column_clear and column != 1:
        return f"on the {('left', '', 'right')[column]} side"
    if row_clear and row != 1:
        return f"in the {('upper', '', 'lower')[row]} part"
    return "near the center"


def list_contents(scene: Scene) -> str:
    """List objects and signs in words."""
    boards = [f'{with_article(sign.color)} sign that says "{sign.text}"' for sign in scene.signs if sign.on is None]
    labeled = {sign.on: sign for sign in scene.signs if sign.on is not None}
    plain = [thing for index, thing in enumerate(scene.objects) if index not in labeled]
    named = [f'{with_article(look(scene.objects[index]))} that says "{sign.text}"' for index, sign in labeled.items()]
    return join([*named, *boards, *([list_looks(plain)] if plain else [])])


def write_caption(scene: Scene) -> str:
    """Write a phrase without a period: `A beach at sunset with two red cars and a blue star`."""
    if scene.background.is_place:
        return capitalize(f"{name_background(scene.background)} with {list_contents(scene)}")
    return capitalize(f"{list_contents(scene)} on {name_background(scene.background)}")


def describe_scene(scene: Scene) -> str:
    """Describe all of a scene in sentences: background, objects with size, look and place, signs, relations."""
    sentences = [f"The picture shows {name_background(scene.background)}."]
    number = len(scene.objects)
    if number:
        sentences.append(f"There {'is' if number == 1 else 'are'} {count_noun(number, '', 'object')} in it.")
    labels = {sign.on: sign.text for sign in scene.signs if sign.on is not None}
    containers = {relation[2] for relation in scene.relations if relation[0] == "inside"}
    for index, thing in enumerate(scene.objects):
        said = f', and the text on it says "{labels[index]}"' if index in labels else ""
        # What contains another object is always large, so its size says nothing.
        size = "" if index in containers else f"{thing.size} "
        sentences.append(f"{capitalize(with_article(f'{size}{look(thing)}'))} is {name_third(thing)}{said}.")
    for sign in scene.signs:
        if sign.on is None:
            sentences.append(f'{capitalize(with_article(sign.color))} sign {name_third(sign)} says "{sign.text}".')
    for name, first, *others in scene.relations:
        others = join([f"the {scene.objects[index].noun}" for index in others])
        sentences.append(f"The {scene.objects[first].noun} is {RELATION_WORDS[name]} {others}.")
    return " ".join(sentences)
