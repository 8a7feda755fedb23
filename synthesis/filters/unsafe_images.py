"""The filter for unsafe images: any image classifier of transformers that has a label for them."""

from PIL import Image

from fusion_vlm.synthesis.sample import Sample


UNSAFE_LABELS = {"nsfw", "unsafe", "porn", "sexy", "hentai", "explicit", "violence", "gore"}
MAX_SCORE = 0.5


class UnsafeImages:
    """
    Rejects images that a classifier finds unsafe.

    Args:
        model (`str`): folder or Hub id of the classifier, such as `Falconsai/nsfw_image_detection`.
        device (`str`): where it runs.

    Raises:
        ValueError: if no model is named, or if none of its labels is one of `UNSAFE_LABELS`.
    """

    def __init__(self, model: str = "", device: str = "cpu"):
        if not model:
            raise ValueError(
                "It needs an image classifier: unsafe_images=MODEL, such as Falconsai/nsfw_image_detection."
            )
        from transformers import pipeline  # late: it imports torch

        self.classify = pipeline("image-classification", model=model, device=device)
        labels = set(self.classify.model.config.id2label.values())
        self.unsafe_labels = {label for label in labels if label.lower() in UNSAFE_LABELS}
        if not self.unsafe_labels:
            known = ", ".join(sorted(UNSAFE_LABELS))
            raise ValueError(f"{model} has the labels {', '.join(sorted(labels))}, expected one of {known}.")

    def __call__(self, sample: Sample, image: Image.Image) -> str | None:
        found = self.classify(image.convert("RGB"), top_k=None)  # the likeliest label first
        unsafe = [entry for entry in found if entry["label"] in self.unsafe_labels]
        sample.scores["unsafe_images"] = score = sum(entry["score"] for entry in unsafe)
        if score <= MAX_SCORE:
            return None
        return f"{unsafe[0]['label']}: {score:.3f}, expected at most {MAX_SCORE:g}"
