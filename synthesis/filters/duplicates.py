"""
Near-duplicate images, by perceptual hashes of 64 bits.

A part is made without the others, so the filter compares the images of a part. `fusion-vlm audit --images` compares
all images of a set. It cannot reject, as parts are finished by then.
"""

import imagehash

from fusion_vlm.synthesis.part_images import PartImages
from fusion_vlm.synthesis.sample import Sample


STAGE = "near_duplicates"


def reject_near_duplicates(samples: list[Sample], images: PartImages, min_distance: int):
    """
    Reject accepted samples whose image is nearly that of an earlier accepted one.

    Args:
        samples (`list[Sample]`): of a part, in order; changed in place.
        images (`PartImages`): their images.
        min_distance (`int`): bits in which the hashes of two images (imagehash's `phash`) have to differ.
    """
    kept = []
    for sample in samples:
        if sample.reason is not None:
            continue
        with images.open(sample.image) as image:
            hash_ = imagehash.phash(image.convert("RGB"))
        near = next((other for other in kept if hash_ - other[0] < min_distance), None)
        if near is None:
            kept.append((hash_, sample.id))
        else:
            sample.reject(
                STAGE, f"near_duplicate: {hash_ - near[0]} bits from {near[1]}, expected at least {min_distance}"
            )
