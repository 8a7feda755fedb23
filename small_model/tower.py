"""
Pretrain the vision tower of a small FUSION: no pretrained tower is that small.

The tower learns what each patch shows: whether there is an object, of what shape and colour, and which patch it is.
The images are drawn scenes and easy-VQA's training images. Without the question about the patch, positions were 4 % of
the variance of the features, with it 44 %.

The tower gets images as in FUSION: the whole image at the side of a crop, and four crops of one of twice that side.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from fusion_vlm.modeling_fusion import FusionVisionModel
from fusion_vlm.small_model.grammar.render import draw_scene
from fusion_vlm.small_model.grammar.scene import (
    COLOURS,
    PLACES,
    PLAIN_BACKGROUNDS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
)
from fusion_vlm.training.muon import MuonWithAdamW, split_for_muon


# What a patch can show of each kind. Index 0 is no object. Two colours are in easy-VQA but not in scenes.
CLASSES = {
    "shape": ("", *SHAPES),
    "colour": ("", *COLOURS, "gray", "teal"),
}
# Directions in which the patches of the first images vary less are noise; whitening would amplify them.
MIN_VARIANCE = 1e-3


class PatchClassifier(nn.Module):
    """
    A tower with linear classifiers on its patch features: whether there is an object, what it is, and which patch.

    Args:
        tower (`FusionVisionModel`)
        classes (`dict[str, tuple[str, ...]]`): names of each kind, as `CLASSES`.
    """

    def __init__(self, tower: FusionVisionModel, classes: dict[str, tuple[str, ...]]):
        super().__init__()
        self.tower = tower
        width = 3 * tower.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.presence = nn.Linear(width, 1)
        self.place = nn.Linear(width, (tower.config.image_size // tower.config.patch_size) ** 2)
        self.heads = nn.ModuleDict({kind: nn.Linear(width, len(names)) for kind, names in classes.items()})

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Return the summed loss of all classifiers.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, size, size)`)
            labels (`torch.LongTensor` of shape `(images, patches, kinds)`): indices into the classes.
        """
        features = self.norm(self.tower(pixel_values).features)
        is_something = labels[..., 0] > 0
        loss = F.binary_cross_entropy_with_logits(self.presence(features).squeeze(-1), is_something.float())
        places = torch.arange(features.shape[1]).expand(features.shape[:2])
        loss = loss + F.cross_entropy(self.place(features).flatten(0, 1), places.flatten())
        # Classes count only where there is an object: most patches show none.
        for index, head in enumerate(self.heads.values()):
            known = labels[..., index] > 0
            if known.any():
                loss = loss + F.cross_entropy(head(features[known]), labels[..., index][known])
        return {"loss": loss}


@torch.no_grad()
def initialize(tower: FusionVisionModel, images: torch.Tensor):
    """
    Set the first weights of the tower so that it learns shapes early.

    The input layer whitens patches: edges vary a thousand times less than colours, so the tower would learn them much
    later. Position embeddings are sines and cosines of row and column.

    Args:
        images (`torch.Tensor` of shape `(images, 3, size, size)`): images whose patches give the statistics.
    """
    config, embeddings = tower.config, tower.embeddings
    patches = F.unfold(images, config.patch_size, stride=config.patch_size).transpose(1, 2).flatten(0, 1)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))  # increasing
    weight = (directions / (variances + MIN_VARIANCE).sqrt()).T.flip(0)[: config.hidden_size]
    embeddings.patch_embedding.weight.copy_(weight.view_as(embeddings.patch_embedding.weight))
    embeddings.patch_embedding.bias.copy_(-weight @ patches.mean(dim=0))
    side, quarter = config.image_size // config.patch_size, config.hidden_size // 4
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = 100.0 ** -torch.linspace(0, 1, quarter)
    waves = [
        function(places.flatten()[:, None] * frequencies)
        for places in (columns, rows)
        for function in (torch.sin, torch.cos)
    ]
    embeddings.position_embedding.weight.copy_(torch.cat(waves, dim=1))


def label_scene(scene: Scene, side: int) -> np.ndarray:
    """Return the classes of the `side * side` patches of a scene's image, int64 `(side, side, kinds)`."""
    labels = np.zeros((side, side, len(CLASSES)), dtype=np.int64)
    centres = (np.arange(side) + 0.5) / side
    for thing in scene.objects:
        # A patch shows an object that covers its center. An object smaller than a patch counts for its own patch.
        reach = max(SIZES[thing.size], 0.5 / side)
        rows, columns = (np.abs(centres - place) <= reach for place in (thing.y, thing.x))
        names = (thing.shape, thing.colour)
        labels[np.ix_(rows, columns)] = [
            classes.index(name) for classes, name in zip(CLASSES.values(), names, strict=True)
        ]
    return labels


class PatchExamples(IterableDataset):
    """
    Endless images of nine objects and of easy-VQA, each as five images for the tower with their labels.

    Args:
        crop_size, patch_size (`int`): in pixels.
        easy_vqa (`list`): path, colour and shape of images with one object.
    """

    classes = CLASSES

    def __init__(self, crop_size: int, patch_size: int, easy_vqa: list[tuple[str, str, str]]):
        self.crop_size, self.side = crop_size, crop_size // patch_size
        self.easy_vqa = easy_vqa

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(0)
        while True:
            image, fine, coarse = self._draw(rng) if rng.random() < 0.7 else self._open(rng)
            image = image.resize((2 * self.crop_size,) * 2, Image.Resampling.BICUBIC)
            whole = np.asarray(image.resize((self.crop_size,) * 2, Image.Resampling.BICUBIC))
            pixels = np.concatenate([whole[None], _quarters(np.asarray(image))])
            labels = np.concatenate([coarse[None], _quarters(fine)])
            yield {
                "pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1,
                "labels": torch.from_numpy(labels).flatten(1, 2),
            }

    def _draw(self, rng: random.Random) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        # `place_objects` in ablation.py and `build_scene` in grammar/scene.py place objects in cells, too.
        # Each draws in an order of its own: one function for all would change what is trained.
        scene = Scene(rng.choice([*PLAIN_BACKGROUNDS, *PLACES]))
        places = [[(cell + 0.5) / 3 + rng.uniform(-0.05, 0.05) for cell in divmod(number, 3)] for number in range(9)]
        for place in places:
            looks = [rng.choice(list(choices)) for choices in (SHAPES, COLOURS, SIZES)]
            scene.objects.append(SceneObject(*looks, *place))
        return draw_scene(scene, 2 * self.crop_size), label_scene(scene, 2 * self.side), label_scene(scene, self.side)

    def _open(self, rng: random.Random) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        """Open an image of easy-VQA. The object is all that differs from the colour of the corner."""
        path, colour, shape = rng.choice(self.easy_vqa)
        image = Image.open(path).convert("RGB")
        pixels = np.asarray(image).astype(int)
        is_object = (np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60).astype(np.float32)
        classes = np.array([CLASSES["shape"].index(shape), CLASSES["colour"].index(colour)])
        labels = []
        for side in (2 * self.side, self.side):
            share = np.asarray(Image.fromarray(is_object).resize((side, side), Image.Resampling.BOX))
            labels.append((share > 0.5)[..., None] * classes)
        return image, *labels


def _quarters(array: np.ndarray) -> np.ndarray:
    """Cut `(2 * n, 2 * n, channels)` into `(4, n, n, channels)`, row-major."""
    n = len(array) // 2
    return array.reshape(2, n, 2, n, -1).swapaxes(1, 2).reshape(4, n, n, -1)


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def pretrain(tower: FusionVisionModel, data: PatchExamples, output_dir: Path, steps: int):
    """Train the tower in place. A run cannot resume; it takes a few minutes on a CPU core."""
    initialize(tower, collate(list(itertools.islice(data, 64)))["pixel_values"])
    arguments = TrainingArguments(
        str(output_dir),
        max_steps=steps,
        per_device_train_batch_size=8,  # of five images each
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=0,
    )
    classifier = PatchClassifier(tower, data.classes)
    # After 1,200 steps without places, 0.87 of the shapes were right with Muon, and 0.60 with AdamW alone.
    tower_ids = {id(parameter) for parameter in tower.parameters()}
    head_parameters = [parameter for parameter in classifier.parameters() if id(parameter) not in tower_ids]
    groups = split_for_muon([{"params": list(tower.parameters()), "lr": 4e-3, "weight_decay": 0.01}], tower)
    for group in groups:
        if not group["use_muon"]:
            group["lr"] = 1e-3
    groups.append({"params": head_parameters, "lr": 1e-3, "weight_decay": 0.0, "use_muon": False})
    optimizer = MuonWithAdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    Trainer(classifier, arguments, data_collator=collate, train_dataset=data, optimizers=(optimizer, None)).train()
