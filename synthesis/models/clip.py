"""CLIP as a scorer of images and texts, for the filters of filters/images.py."""

from PIL import Image


class ClipScorer:
    """
    CLIPScore of an image and a text: the cosine of their embeddings, at least 0.

    Without the factor of 2.5 of Hessel et al. 2021, as in the paper's own values (0.31 to 0.38, table 13). A long text
    is cut to the length that the model reads.

    Args:
        model (`str`): name or folder of a CLIP or SigLIP model.
        device (`str`): the device that the model runs on.
    """

    def __init__(self, model: str = "openai/clip-vit-base-patch32", device: str = "cpu"):
        # Late, here and below: torch takes seconds to import, and runs without CLIP need none.
        from transformers import AutoModel, AutoProcessor

        self.device = device
        self.processor = AutoProcessor.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model).to(device).eval()

    def __call__(self, image: Image.Image, text: str) -> float:
        import torch

        inputs = self.processor(
            text=[text],
            images=[image.convert("RGB")],
            return_tensors="pt",
            truncation=True,
            padding="max_length",  # SigLIP was trained with padding; CLIP gives the same with and without
            max_length=self.model.config.text_config.max_position_embeddings,
        )
        with torch.no_grad():
            outputs = self.model(**inputs.to(self.device))
        cosine = torch.nn.functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
        return max(cosine.item(), 0.0)
