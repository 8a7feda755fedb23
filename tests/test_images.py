"""One reader for images: every kind of source gives the same pixels, and errors name the source and the cause."""

import base64
import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_vlm import handler, processing_fusion
from fusion_vlm.processing_fusion import read_image
from fusion_vlm.rows.messages import load_image

from .helpers import make_messages, process
from .tiny import random_image


def transparent_image() -> Image.Image:
    """Red, invisible on the left."""
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 10))
    return image


def deep_image() -> Image.Image:
    """16 bits, from black to white."""
    return Image.fromarray(np.linspace(0, 65535, 200).reshape(10, 20).astype(np.uint16))


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def web():
    """Serve images; yield the address and the responses by path."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, content = answers.get(self.path, (404, b""))
            if status == "slow":
                time.sleep(5)
            self.send_response(status if isinstance(status, int) else 200)
            self.send_header("Content-Length", str(len(content) + (100 if status == "cut" else 0)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    Handler.protocol_version = "HTTP/1.0"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()


def sources_of(content: bytes, folder: Path, web) -> dict:
    """Return every kind of source of the content of a file."""
    path = folder / "an image.PNG"
    path.write_bytes(content)
    address, answers = web
    answers["/image"] = (200, content)
    text = base64.b64encode(content).decode()
    used = io.BytesIO(content)
    used.read()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    return {
        "path": str(path),
        "Path": path,
        "file URI": path.as_uri(),
        "address": f"{address}/image",
        "address in capitals": f"{address}/image".replace("http", "HTTP"),
        "bytes": content,
        "bytearray": bytearray(content),
        "BytesIO": io.BytesIO(content),
        "BytesIO that was read": used,
        "base64": text,
        "base64 in lines": lines,
        "base64 without padding": text.rstrip("="),
        "base64 for URLs": text.replace("+", "-").replace("/", "_"),
        "data URI": f"data:image/png;base64,{text}",
        "data URI in capitals": f"DATA:IMAGE/PNG;BASE64,{text}",
        "data URI with parameters": f"data:image/png;charset=utf-8;base64,{text}",
        "data URI without a type": f"data:;base64,{text}",
        "data URI of octets": f"data:application/octet-stream;base64,{text}",
        "datasets, undecoded": {"bytes": content, "path": None},
        "datasets, path": {"bytes": None, "path": str(path)},
        "PIL": Image.open(io.BytesIO(content)),
    }


@pytest.mark.parametrize("make", [transparent_image, deep_image, lambda: random_image(0)])
def test_every_kind_of_source_gives_the_same_pixels(make, tmp_path, web, processor):
    expected = np.asarray(read_image(make()))
    for name, source in sources_of(encode(make()), tmp_path, web).items():
        assert np.array_equal(np.asarray(read_image(source)), expected), name
        if "address" in name:
            continue
        # By way of messages, with the other forms of a part.
        assert np.array_equal(np.asarray(load_image(source)), expected), name
        pixels = process(processor, make_messages(["What?"], source))["pixel_values"]
        assert torch.equal(pixels, process(processor, make_messages(["What?"], make()))["pixel_values"]), name


def test_transparency_becomes_white_and_16_bits_are_scaled():
    pixels = np.asarray(read_image(transparent_image()))
    assert (pixels[:, :10] == 255).all() and (pixels[:, 10:] == [255, 0, 0]).all()
    assert np.asarray(read_image(deep_image())).min() == 0 and np.asarray(read_image(deep_image())).max() == 255
    middle = Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16))
    assert (np.asarray(read_image(middle)) == 128).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_modes_of_pillow(mode):
    """White stays white, whatever the mode."""
    base = Image.new("RGBA", (8, 6), "white")
    steps = {"La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "PA": ["P", "PA"], "LAB": ["RGB", "LAB"]}
    for step in steps.get(mode, [mode] if mode in ("RGBA", "LA") else ["RGB", mode]):
        base = base.convert(step)
    assert base.mode == mode
    assert (np.asarray(read_image(base)) == 255).all()


def test_orientation_of_a_camera_is_applied():
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert read_image(buffer.getvalue()).size == (10, 20)


VALUES = np.arange(0, 240, dtype=np.uint8).reshape(8, 10, 3)


@pytest.mark.parametrize(
    "pixels",
    {
        "channels last": VALUES,
        "channels first": VALUES.transpose(2, 0, 1),
        "batch of one": VALUES[None],
        "int64": VALUES.astype(np.int64),
        "16 bits": VALUES.astype(np.uint16) * 257,
        "floats": VALUES.astype(np.float64) / 255,
        "tensor": torch.from_numpy(VALUES).permute(2, 0, 1),
        "tensor with a gradient": (torch.from_numpy(VALUES).float() / 255).requires_grad_(),
        "alpha": np.concatenate([VALUES, np.full((8, 10, 1), 255, dtype=np.uint8)], axis=2),
        "not contiguous": np.concatenate([VALUES, VALUES], axis=1)[:, :10],
    }.items(),
    ids=lambda item: item[0],
)
def test_arrays_give_the_pixels_that_they_hold(pixels):
    assert np.array_equal(np.asarray(read_image(pixels[1])), VALUES)


def test_grey_arrays_and_modes_of_integers():
    """Of one channel, two (with alpha), none, and what Pillow makes of 32-bit integers."""
    grey = np.arange(80, dtype=np.uint8).reshape(8, 10)
    expected = np.repeat(grey[..., None], 3, axis=2)
    with_alpha = np.stack([grey, np.full_like(grey, 255)], axis=2)
    for pixels in (grey, grey[None], grey[..., None], with_alpha, Image.fromarray(grey.astype(np.int32)), grey / 255):
        assert np.array_equal(np.asarray(read_image(pixels)), expected)
    assert np.array_equal(np.asarray(read_image(Image.fromarray(grey.astype(np.float32)))), expected)
    tensor = torch.rand(3, 9, 9).bfloat16()
    assert np.array_equal(np.asarray(read_image(tensor)), np.asarray(read_image(tensor.float())))


def test_dark_16_bit_file_stays_dark():
    """Pillow before 11 opens the file in mode I, as it makes an image of an int32 array."""
    dark = Image.fromarray(np.full((4, 4), 200, dtype=np.uint16))
    assert np.asarray(read_image(encode(dark))).max() == 1


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((5, 8, 9), np.uint8), r"shape \(5, 8, 9\), expected \(height, width\) or 1 to 4 channels"),
        (np.zeros((8,), np.uint8), r"shape \(8,\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\)"),
        (np.zeros((4, 9, 3), np.uint8), "may have its channels first or last: pass `input_data_format`"),
        (np.zeros((8, 8, 3), "U1"), "dtype <U1, expected numbers"),
        (np.full((8, 8, 3), 300), "values from 300 to 300, expected 0 to 255"),
        (np.full((8, 8, 3), np.inf), "NaN or infinity"),
    ],
)
def test_arrays_that_are_no_image(pixels, message):
    with pytest.raises(ValueError, match=message):
        read_image(pixels)


def test_order_of_channels_can_be_said(processor):
    pixels = np.arange(4 * 9 * 3, dtype=np.uint8).reshape(4, 9, 3)
    assert np.array_equal(np.asarray(read_image(pixels, "channels_last")), pixels)
    inputs = processor.image_processor(pixels, input_data_format="channels_last", return_tensors="pt")
    assert torch.equal(
        inputs["pixel_values"], processor.image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    )


# Sources that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["photo.jpg", "IMG_0001.JPG", "no extension", "a/b.webp", "~/nowhere.png", "photo"])
def test_missing_file_is_told_as_such(name):
    for source in (name, Path(name)):
        with pytest.raises(ValueError, match="there is no such file"):
            read_image(source)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    cases = {
        str(tmp_path): "it is a folder",
        str(tmp_path / "notes.png"): r"notes.png': it is not an image that Pillow reads",
        "ftp://host/a.png": "expected an address that begins with http://",
        "file://host/a.png": "'host' is another machine, expected file:///path",
        "~$nobody.png": "there is no such file",
        "data:image/png;base64": "a data URI has a comma",
        "data:image/png;base64,!!!!": "its content is not base64",
        "data:image/svg+xml,<svg/>": "it is not an image",
        b"": "from 0 bytes: it is empty",
        5: "from a int: expected a path, an address",
        None: "expected a path",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message):
            read_image(source)
    with pytest.raises(ValueError) as error:
        read_image(io.BytesIO(b"not an image"))
    assert "<" not in str(error.value), "no object of Python is shown"
    with pytest.raises(ValueError, match="a data URI, 12 bytes: it is not an image"):
        read_image(b"not an image", name="a data URI, 12 bytes")


def test_addresses_that_fail_are_named(web, monkeypatch):
    address, answers = web
    content = encode(random_image(0))
    answers.update(
        {"/page": (200, b"<html>"), "/error": (500, b""), "/cut": ("cut", content), "/slow": ("slow", content)}
    )
    monkeypatch.setattr(processing_fusion, "FETCH_SECONDS", 0.5)
    cases = {
        f"{address}/page": "it is not an image",
        f"{address}/missing": "/missing': HTTP status 404",
        f"{address}/error": "HTTP status 500",
        f"{address}/slow": "no answer within 0.5 seconds",
        f"{address}/cut": "bytes early|truncated|incomplete",
        "http://127.0.0.1:9/x.png": "127.0.0.1:9/x.png': .*refused",
        "http://no.such.host.invalid/x.png": "no.such.host",
        "http://": "Cannot read an image from 'http://'",
        "http://[::1/x.png": "Cannot read an image",
        "https://example.com/a b": "Cannot read an image",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message):
            read_image(source)


def test_limits_of_size(web, monkeypatch):
    address, answers = web
    large = encode(Image.new("1", (300, 200)))
    answers["/large"] = (200, large)
    monkeypatch.setattr(processing_fusion, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ValueError, match="300 x 200 pixels, expected at most 50000"):
        read_image(large)
    assert read_image(Image.new("1", (300, 200))).size == (300, 200), "what is decoded already is taken"
    monkeypatch.setattr(processing_fusion, "MAX_IMAGE_BYTES", len(large) - 1)
    for source in (f"{address}/large", base64.b64encode(large).decode() * 2):
        with pytest.raises(ValueError, match="it has more than .* bytes"):
            read_image(source)
    bomb = encode(Image.new("1", (14_000, 14_000)))
    with pytest.raises(ValueError, match="exceeds limit"):
        read_image(bomb)


def test_handler_has_the_same_limits_and_pixels(tmp_path):
    """The handler stands alone; its reader takes fewer kinds of sources."""
    for name in ("MAX_IMAGE_BYTES", "MAX_IMAGE_PIXELS", "FETCH_SECONDS"):
        assert getattr(handler, name) == getattr(processing_fusion, name)
    for make in (transparent_image, deep_image):
        for source in ("data:image/png;base64," + base64.b64encode(encode(make())).decode(), encode(make())):
            pixels = np.asarray(read_image(handler.read_image(source)))
            assert np.array_equal(pixels, np.asarray(read_image(make())))


# Options of the image processor -------------------------------------------------------------------------------------


def test_floats_without_rescaling_are_0_to_1(processor):
    """As in-tree SigLIP takes them; other values cannot be meant."""
    pixels = torch.rand(3, 20, 20)
    expected = processor.image_processor(pixels, return_tensors="pt")["pixel_values"]
    for inputs in (
        processor.image_processor(pixels, do_rescale=False, return_tensors="pt"),
        process(processor, make_messages(["What?"], pixels), do_rescale=False),
        process(processor, make_messages(["What?"], pixels), images_kwargs={"do_rescale": False}),
    ):
        assert torch.equal(inputs["pixel_values"], expected)
    for source in (random_image(0), (pixels * 255).byte(), pixels * 255):
        with pytest.raises(
            ValueError, match="`do_rescale=False` is for arrays of floats from 0 to 1, but an image is a"
        ):
            processor.image_processor(source, do_rescale=False)


def test_pixels_do_not_depend_on_the_release_of_pillow(processor):
    """Pillow 13 begins with the height of most portraits, older releases with the width; the goldens are of 13."""
    pixels = np.random.default_rng(0).integers(0, 256, (97, 31, 3), dtype=np.uint8)
    resized = {}
    for name, image in (("portrait", pixels), ("landscape", pixels.transpose(1, 0, 2))):
        inputs = processor.image_processor(Image.fromarray(image), return_tensors="pt", do_normalize=False)
        resized[name] = (inputs["pixel_values"][0] * 255).round().long()
    width_first = Image.fromarray(pixels).resize((24, 97), 3).resize((24, 24), 3)
    height_first = Image.fromarray(pixels).resize((31, 24), 3).resize((24, 24), 3)
    assert not np.array_equal(np.asarray(width_first), np.asarray(height_first)), "the order shows"
    assert np.array_equal(resized["portrait"].permute(1, 2, 0).numpy(), np.asarray(height_first))
    landscape = Image.fromarray(pixels.transpose(1, 0, 2)).resize((24, 31), 3).resize((24, 24), 3)
    assert np.array_equal(resized["landscape"].permute(1, 2, 0).numpy(), np.asarray(landscape))
