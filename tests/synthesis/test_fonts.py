"""The fonts of drawn text: complete, the same everywhere, and legible."""

import string

import pytest
from fontTools.ttLib import TTFont

from fusion_vlm.synthesis.scenes import fonts
from fusion_vlm.synthesis.scenes.fonts import available_fonts, fonts_identity, load, size_for_capitals


# With the releases in constraints.txt. When a release changes a font, the same seed draws other pixels: say so in the
# changelog.
IDENTITY = "c120c2181e2b07a124fcf84c906d693ceb4bbb5f9b8a75fdd45a8c271a0ba814"


def test_there_are_dozens_of_families_in_a_fixed_order():
    faces = available_fonts()
    assert list(faces) == sorted(faces) and len({face.name for face in faces}) == len(faces) >= 100
    assert len({face.family for face in faces}) >= 25
    assert {face.design for face in faces} == {"sans", "serif", "mono", "display", "hand"}


def test_the_set_is_the_recorded_one():
    assert fonts_identity() == IDENTITY


@pytest.mark.parametrize("face", available_fonts(), ids=lambda face: face.name)
def test_each_face_has_every_printable_character(face):
    font = TTFont(fonts._open(face), lazy=True)
    printable = string.ascii_letters + string.digits + string.punctuation + " "
    assert not set(map(ord, printable)) - set(font.getBestCmap())
    # Letters that cannot be told apart would make a question about them unanswerable.
    glyphs = {bytes(load(face, 40).getmask(letter)) for letter in string.ascii_uppercase + string.digits}
    assert len(glyphs) >= 35  # O and 0 are one shape in some faces
    same = [load(face, 60).getbbox(letter)[3] == load(face, 60).getbbox(letter.upper())[3] for letter in "gpqy"]
    assert any(not one for one in same) or not face.has_lower_case


def test_capitals_get_the_height_that_was_asked_for():
    for face in available_fonts():
        top, bottom = load(face, size_for_capitals(face, 24)).getbbox("H", anchor="ls")[1::2]
        assert abs(bottom - top - 24) <= 1, face.name


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch):
    find_spec = fonts.importlib.util.find_spec
    monkeypatch.setattr(
        fonts.importlib.util, "find_spec", lambda name: None if name == "font_caladea" else find_spec(name)
    )
    fonts._package_folder.cache_clear()
    with pytest.raises(ImportError, match=r'font_caladea.*pip install "fusion-vlm\[synthesis\]"'):
        available_fonts.__wrapped__()
    fonts._package_folder.cache_clear()
