"""
Measure what each part of FUSION is worth, at small scale and at equal training compute.

All variants start from the same pretrained tower and are random elsewhere. They train with the same number of
floating-point operations (counted), so a variant without a part takes more steps.

The tasks are easy-VQA (one object, 64x64 pixels) and scenes of three to six objects. A question names an object by its
color and asks for its shape (find), its pattern, or how many there are (count). Shapes, colors and numbers show in the
base image. Patterns show only in the crops: they vary from pixel to pixel, and become one color in an image of half
the size. Variants learn captions that name everything at the same time.

`a*` is not at equal compute: it takes as many steps as `e`. So it separates what the parts give for each example from
what they cost. `a1` and `b1` are `a` and `b` with one image token (of the four patches in the middle). A tower has to
put all objects into that token, or only one if the tower gets the question.

    python -m fusion_vlm.small_model.ablation run [--seeds 0 1 2] [--variants a b c ...] [--teraflops 8]
    python -m fusion_vlm.small_model.ablation report [--plot FILE]

Each run adds a line to `results.jsonl` in the work folder; finished runs are skipped. After one process has made data
and tower, several processes can share the work, with different variants. `report` prints the table and draws the plot.
The runs that docs/small_model.md reports are in small_model/results/ablation.jsonl.
"""

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipAttention

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import (
    FusionForConditionalGeneration,
    FusionVisionAttention,
    FusionVisionModel,
)
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.small_model.data import list_objects, make_easy_vqa, read_easy_vqa, to_conversation
from fusion_vlm.small_model.grammar.render import draw_scene
from fusion_vlm.small_model.grammar.scene import Scene, SceneObject, capitalize, join, with_article
from fusion_vlm.small_model.tower import CLASSES, PatchExamples, label_scene, pretrain
from fusion_vlm.small_model.train import make_processor
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments


CROP_SIZE, PATCH_SIZE = 48, 8
SIDE = CROP_SIZE // PATCH_SIZE
BATCH_SIZE, LEARNING_RATE = 16, 2e-3
# Training scenes, each with a caption and questions; captions and conversations of easy-VQA; test images of scenes and
# of easy-VQA each.
NUM_SCENES, NUM_EASY_VQA, NUM_TEST = 12000, (4000, 12000), 600
TOWER_STEPS = 1500
TASKS = ("find", "count", "pattern")
SCENE_SHAPES = ("circle", "square", "triangle", "star", "cross")
SCENE_COLOURS = ("black", "red", "yellow", "green", "blue", "purple")  # of `COLOURS`, apart as tints too
# Whether a pixel, by its row and column, has the color of the object, or else is white. Plain objects are the mean.
PATTERNS = {
    "plain": None,
    "striped": lambda rows, columns: columns % 2,
    "barred": lambda rows, columns: rows % 2,
    "dotted": lambda rows, columns: (rows + columns) % 2,
}
# Reach of an object around its center with its blended edge, as a share of the side. Other objects are farther away.
REACH = 0.135


@dataclasses.dataclass(frozen=True)
class Variant:
    """Which parts of FUSION a model has."""

    title: str
    guided: bool = False  # the question in the tower
    mapping: bool = False  # the mapping loss
    interaction: bool = False  # latents and interaction layers
    paper_mask: bool = False  # patches of early layers do not attend to the question (paper)
    latent_grid_size: int = 4
    image_grid_size: int = SIDE


ALL = {"guided": True, "mapping": True, "interaction": True}
VARIANTS = {
    "a": Variant("LLaVA-style twin"),
    "b": Variant("a + text-guided encoding", guided=True),
    "c": Variant("b + mapping loss", guided=True, mapping=True),
    "d": Variant("a + interaction layers", interaction=True),
    "e": Variant("all (16 latents)", **ALL),
    "f": Variant("all, early mask of the paper", **ALL, paper_mask=True),
    "h4": Variant("all, 4 latents", **ALL, latent_grid_size=2),
    "h36": Variant("all, 36 latents", **ALL, latent_grid_size=6),
    "h64": Variant("all, 64 latents", **ALL, latent_grid_size=8),
    "a*": Variant("a with the steps of e"),
    "a1": Variant("a, one image token", image_grid_size=1),
    "b1": Variant("b, one image token", guided=True, image_grid_size=1),
}


class PaperMaskAttention(FusionVisionAttention):
    """The paper's early layers: patches attend to patches only, question rows to everything."""

    def forward(self, hidden_states, attention_mask=None, uniform_weights=None, num_patches=None, **kwargs):
        if uniform_weights is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        batch, length, _ = hidden_states.shape
        is_hidden = (uniform_weights == 0)[:, None, None, :].expand(batch, 1, length, length).clone()
        is_hidden[:, :, :num_patches, num_patches:] = True
        mask = torch.zeros_like(is_hidden, dtype=hidden_states.dtype).masked_fill(is_hidden, float("-inf"))
        return SiglipAttention.forward(self, hidden_states, mask, **kwargs)


@dataclasses.dataclass
class Example:
    """A conversation with one placeholder for the image and one for the latents of each question."""

    ids: np.ndarray
    labels: np.ndarray
    question_ids: np.ndarray
    image: int  # row of the pixels
    group: str  # row of the report that it counts for


class Examples(torch.utils.data.Dataset):
    """
    Examples with their pixels, prepared once.

    Args:
        examples (`list[Example]`)
        pixels (`torch.Tensor` of shape `(images, 5, 3, size, size)`, uint8): the base image, then the four crops.
    """

    def __init__(self, examples: list[Example], pixels: torch.Tensor):
        self.examples, self.pixels = examples, pixels

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Example, torch.Tensor]:
        example = self.examples[index]
        return example, self.pixels[example.image]


def prepare(rows: list[dict], processor: FusionProcessor) -> Examples:
    """Prepare rows with `conversations`, `image` (a path) and `group`."""
    processor.image_processor.image_grid_size = 1
    collate = FusionDataCollator(processor, latent_grid_sizes=[1])
    images = {path: index for index, path in enumerate(dict.fromkeys(row["image"] for row in rows))}
    pixels = torch.empty(len(images), 5, 3, CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    examples = []
    for start in range(0, len(rows), 32):
        chunk = rows[start : start + 32]
        batch = collate(chunk)
        crops = torch.cat([batch["pixel_values"][:, None], batch["high_res_pixel_values"]], dim=1)
        crops = ((crops + 1) * 127.5).round().to(torch.uint8)
        for index, row in enumerate(chunk):
            kept = batch["attention_mask"][index].bool()
            question = batch["question_input_ids"][index][batch["question_attention_mask"][index].bool()]
            pixels[images[row["image"]]] = crops[index]
            examples.append(
                Example(
                    batch["input_ids"][index][kept].numpy(),
                    batch["labels"][index][kept].numpy(),
                    question.numpy(),
                    images[row["image"]],
                    row["group"],
                )
            )
    return Examples(examples, pixels)


class Collator:
    """
    Batches of `Examples` for a variant.

    Args:
        variant (`Variant`), config (`FusionConfig`)
    """

    def __init__(self, variant: Variant, config: FusionConfig):
        self.variant, self.config = variant, config

    def __call__(self, rows: list[tuple[Example, torch.Tensor]]) -> dict[str, torch.Tensor]:
        expanded = [self._expand(example) for example, _ in rows]
        pixels = torch.stack([pixels for _, pixels in rows]).float() / 127.5 - 1
        batch = {
            "input_ids": _pad([ids for ids, _ in expanded], 0),
            "labels": _pad([labels for _, labels in expanded], -100),
            "attention_mask": _pad([np.ones_like(ids) for ids, _ in expanded], 0),
            "pixel_values": pixels[:, 0],
        }
        if self.variant.interaction:
            batch["high_res_pixel_values"] = pixels[:, 1:]
        if self.variant.guided:
            questions = [example.question_ids for example, _ in rows]
            batch["question_input_ids"] = _pad(questions, 0)
            batch["question_attention_mask"] = _pad([np.ones_like(ids) for ids in questions], 0)
        return batch

    def _expand(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        repeats = np.ones_like(example.ids)
        repeats[example.ids == self.config.image_token_id] = self.variant.image_grid_size**2
        latents = np.flatnonzero(example.ids == self.config.latent_token_id)
        repeats[latents] = self.variant.latent_grid_size**2
        if not self.variant.interaction:
            # The twin has no latents and no frame tokens around them.
            repeats[np.concatenate([latents - 1, latents, latents + 1])] = 0
        return np.repeat(example.ids, repeats), np.repeat(example.labels, repeats)


def _pad(rows: list[np.ndarray], value: int) -> torch.LongTensor:
    rows = [torch.from_numpy(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def load_examples(work_dir: Path) -> tuple[FusionProcessor, Examples, Examples]:
    """Load the processor, the training examples and the test examples, which the first call makes."""
    folder = work_dir / "ablation"
    paths = [folder / f"{name}.pt" for name in ("train", "test")]
    if not paths[1].exists():
        if not (work_dir / "data" / "easy_vqa" / "train.json").exists():
            make_easy_vqa(work_dir / "data" / "easy_vqa")
        parts = [read_train(work_dir), read_test(work_dir)]
        texts = [turn["value"].removeprefix("<image>\n") for row in parts[0] for turn in row["conversations"]]
        processor = make_processor(texts)
        set_up(processor)
        processor.save_pretrained(folder / "processor")
        for rows, path in zip(parts, paths, strict=True):
            prepared = prepare(rows, FusionProcessor.from_pretrained(folder / "processor"))
            unfinished = path.with_suffix(".unfinished")
            torch.save(([dataclasses.astuple(each) for each in prepared.examples], prepared.pixels), unfinished)
            unfinished.rename(path)
    loaded = [torch.load(path, weights_only=False, mmap=True) for path in paths]
    train, test = (Examples([Example(*each) for each in examples], pixels) for examples, pixels in loaded)
    return FusionProcessor.from_pretrained(folder / "processor"), train, test


def set_up(processor: FusionProcessor):
    """Set the size of crops, and a base image whose pixels are the means of four."""
    processor.image_processor.size = {"height": CROP_SIZE, "width": CROP_SIZE}
    processor.image_processor.resample = Image.Resampling.BOX


def read_train(work_dir: Path) -> list[dict]:
    rng = random.Random(0)
    folder, chosen = work_dir / "data" / "easy_vqa", []
    for name, number in zip(("captions", "train"), NUM_EASY_VQA, strict=True):
        rows = json.loads((folder / f"{name}.json").read_text())
        rows = [row for row in rows if len(row["conversations"]) <= 4]
        chosen += [
            {**row, "image": str(folder / row["image"]), "group": "easy-VQA"} for row in rng.sample(rows, number)
        ]
    for index in range(NUM_SCENES):
        chosen += make_scene(rng, work_dir / "ablation" / "train" / f"{index}.png", rng.sample(TASKS, 2))
    return chosen


def read_test(work_dir: Path) -> list[dict]:
    """Make captions and single questions for images that are not in training, with a group for each task."""
    rng = random.Random(1)
    rows = []
    for index in range(NUM_TEST):
        path = work_dir / "ablation" / "test" / f"{index}.png"
        rows += make_scene(rng, path, [TASKS[index % len(TASKS)]])
    for row in rng.sample(read_easy_vqa("test"), NUM_TEST):
        conversation = to_conversation([(row.question, row.answer)])
        rows.append({"conversations": conversation, "image": row.path, "group": "easy-VQA"})
    return rows


def make_scene(rng: random.Random, path: Path, tasks: list[str]) -> list[dict]:
    """Draw three to six objects in the cells of a 3 x 3 grid. Return a caption, and the questions of `tasks`."""
    colours, number = rng.sample(SCENE_COLOURS, 3), rng.randint(1, 4)
    # One object to find, one with a pattern to name, and `number` to count.
    objects = place_objects(rng, [*colours[:2], *[colours[2]] * number])
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_objects(objects).save(path)
    turns = {
        "find": (f"What shape is the {colours[0]} object?", objects[0][0].shape),
        "pattern": (f"What pattern has the {colours[1]} object?", objects[1][1]),
        "count": (f"How many {colours[2]} objects are there?", str(number)),
    }
    in_order = sorted(objects, key=lambda each: (int(3 * each[0].y), each[0].x))
    caption = join([with_article(f"{pattern} {thing.name}") for thing, pattern in in_order])
    caption = to_conversation([("What does the picture show?", capitalize(caption) + ".")])
    asked = to_conversation([turns[task] for task in tasks])
    return [
        {"conversations": conversation, "image": str(path), "group": group}
        for conversation, group in ((caption, "caption"), (asked, tasks[0]))
    ]


def place_objects(rng: random.Random, colours: list[str]) -> list[tuple[SceneObject, str]]:
    """
    Return an object of each color, with its pattern; shapes, patterns and cells are random.

    `build_scene` in grammar/scene.py and `PatchExamples` in tower.py place objects in such cells, too. Each
    draws in an order of its own: one function for all would change what is trained.
    """
    cells = rng.sample([(column, row) for column in range(3) for row in range(3)], len(colours))
    places = [tuple((place + 0.5) / 3 + rng.uniform(-0.04, 0.04) for place in cell) for cell in cells]
    return [
        (SceneObject(rng.choice(SCENE_SHAPES), colour, "large", *place), rng.choice(list(PATTERNS)))
        for colour, place in zip(colours, places, strict=True)
    ]


def draw_objects(objects: list[tuple[SceneObject, str]]) -> Image.Image:
    """
    Draw objects on white, in an image of twice the side of a crop.

    Shapes are drawn at half that side and enlarged, so the mean of two by two pixels does not depend on the patterns.
    """
    half = np.asarray(draw_scene(Scene("white", [thing for thing, _ in objects]), CROP_SIZE)).astype(int)
    rows, columns = np.indices((2 * CROP_SIZE,) * 2)
    ink = (255 - half[rows // 2, columns // 2]) // 2  # ink of plain objects
    for thing, pattern in objects:
        if PATTERNS[pattern] is not None:
            places = (((rows // 2 + 0.5) / CROP_SIZE, thing.y), ((columns // 2 + 0.5) / CROP_SIZE, thing.x))
            inside = np.logical_and.reduce([abs(place - center) < REACH for place, center in places])
            ink[inside] = (2 * ink * PATTERNS[pattern](rows, columns)[..., None])[inside]
    drawn = 255 - ink
    return Image.fromarray(drawn.astype(np.uint8))


class PatternExamples(PatchExamples):
    """Images of nine patterned objects. In the image of half the size, patterns have no label."""

    classes = {**CLASSES, "pattern": ("", *PATTERNS)}

    def _draw(self, rng: random.Random) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        objects = place_objects(rng, rng.choices(SCENE_COLOURS, k=9))
        labels = []
        for side, known in ((2 * self.side, True), (self.side, False)):
            label = np.zeros((side, side, len(self.classes)), dtype=np.int64)
            for thing, pattern in objects:
                one = label_scene(Scene("white", [thing]), side)
                is_there = one[..., 0] > 0
                label[is_there, :-1] = one[is_there]
                label[is_there, -1] = self.classes["pattern"].index(pattern) if known else 0
            labels.append(label)
        return draw_objects(objects), *labels

    def _open(self, rng: random.Random) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        image, *labels = super()._open(rng)
        return image, *(np.pad(label, ((0, 0), (0, 0), (0, 1))) for label in labels)


VISION_CONFIG = SiglipVisionConfig(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=CROP_SIZE,
    patch_size=PATCH_SIZE,
    vision_use_head=False,
)


def load_tower(work_dir: Path) -> FusionVisionModel:
    """Load the tower that all runs start from, which the first call pretrains."""
    path = work_dir / "ablation" / "tower"
    if not path.exists():
        torch.manual_seed(0)
        tower = FusionVisionModel(VISION_CONFIG)
        examples = PatternExamples(CROP_SIZE, PATCH_SIZE, list_objects())
        pretrain(tower, examples, work_dir / "ablation" / "tower-logs", TOWER_STEPS)
        tower.save_pretrained(path)
    return FusionVisionModel.from_pretrained(path)


def build_model(
    variant: Variant, processor: FusionProcessor, work_dir: Path, seed: int
) -> FusionForConditionalGeneration:
    """Build a model of a million parameters: the pretrained tower, random elsewhere."""
    torch.manual_seed(seed)
    config = FusionConfig(
        vision_config=VISION_CONFIG.to_dict(),
        text_config=LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=4,
            initializer_range=0.1,  # about 1 / sqrt(hidden_size)
            pad_token_id=0,
            tie_word_embeddings=True,
        ),
        interaction_layer_indices=[0, 1, 2] if variant.interaction else [],
        num_interaction_heads=4,
        latent_grid_sizes=[variant.latent_grid_size],
        latent_grid_size=variant.latent_grid_size,
        mapping_loss_coef=0.1 if variant.mapping else 0.0,
        image_token_id=processor.image_token_id,
        latent_token_id=processor.latent_token_id,
        question_end_token_ids=processor.question_end_token_ids,
    )
    model = FusionForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(load_tower(work_dir).state_dict())
    if variant.paper_mask:
        for layer in model.model.vision_tower.encoder.layers:
            layer.self_attn.__class__ = PaperMaskAttention
    return model


def count_flops(model: FusionForConditionalGeneration, data: Examples, collate: Collator) -> float:
    """Count the operations of a training step, forward and backward, in the mean over some batches."""
    rng, num_batches = random.Random(0), 12
    model.set_attn_implementation("eager")  # the counter has no formula for SDPA on a CPU
    with FlopCounterMode(display=False) as counter:
        for _ in range(num_batches):
            model(**collate([data[rng.randrange(len(data))] for _ in range(BATCH_SIZE)])).loss.backward()
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    return counter.get_total_flops() / num_batches


@torch.no_grad()
def evaluate(model: FusionForConditionalGeneration, data: Examples, collate: Collator) -> dict[str, float]:
    """
    Return the share of the answers of each group that greedy decoding would give exactly.

    An answer counts if each of its tokens is the likeliest one after the tokens before it.
    """
    model.eval()
    right = {}
    for start in range(0, len(data), 64):
        rows = [data[index] for index in range(start, min(start + 64, len(data)))]
        batch = collate(rows)
        labels = F.pad(batch.pop("labels"), (0, 1), value=-100)[:, 1:]
        is_right = ((model(**batch).logits.argmax(dim=-1) == labels) | (labels == -100)).all(dim=1)
        for (example, _), one in zip(rows, is_right.tolist(), strict=True):
            right.setdefault(example.group, []).append(one)
    scores = {group: sum(values) / len(values) for group, values in sorted(right.items())}
    scenes = [value for group in TASKS for value in right[group]]
    scores["scenes"] = sum(scenes) / len(scenes)
    scores["mean"] = (scores["easy-VQA"] + scores["scenes"]) / 2
    return scores


def train(
    model: FusionForConditionalGeneration, data: Examples, collate: Collator, folder: Path, steps: int, seed: int
) -> float:
    """Train a model in place. Return the last language loss that is logged."""
    arguments = FusionTrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        use_muon=True,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        adam_beta2=0.99,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        disable_tqdm=True,
    )
    trainer = FusionTrainer(model, arguments, data_collator=collate, train_dataset=data)
    trainer.train()
    return [entry["language_loss"] for entry in trainer.state.log_history if "language_loss" in entry][-1]


def run(name: str, seed: int, work_dir: Path, teraflops: float) -> dict:
    """Train and evaluate a variant; evaluate the whole model also with fewer image tokens."""
    processor, data, test = load_examples(work_dir)
    variant = VARIANTS[name]
    model = build_model(variant, processor, work_dir, seed)
    collate = Collator(variant, model.config)
    flops = count_flops(model, data, collate)
    steps = round(teraflops * 1e12 / flops)
    if name == "a*":
        model_e = build_model(VARIANTS["e"], processor, work_dir, seed)
        steps = round(teraflops * 1e12 / count_flops(model_e, data, Collator(VARIANTS["e"], model_e.config)))
    started = time.perf_counter()
    loss = train(model, data, collate, work_dir / "ablation" / f"{name}-{seed}", steps, seed)
    result = {
        "variant": name,
        "seed": seed,
        "teraflops": teraflops,
        "parameters": model.num_parameters(),
        "gflops_per_step": flops / 1e9,
        "steps": steps,
        "seconds": time.perf_counter() - started,
        "loss": loss,
    }
    result["scores"] = evaluate(model, test, collate)
    if name == "e":
        result["image grid 4"] = evaluate(
            model, test, Collator(dataclasses.replace(variant, image_grid_size=4), model.config)
        )
    return result


def report(results: list[dict], plot: Path | None):
    """Print tables of means and standard deviations over the seeds, and draw a plot."""
    by_variant = {name: [result for result in results if result["variant"] == name] for name in VARIANTS}
    by_variant = {name: rows for name, rows in by_variant.items() if rows}
    groups = ["mean", "easy-VQA", "scenes"]
    groups += [group for group in results[0]["scores"] if group not in groups]
    print("| | parts | seeds | parameters | GFLOP a step | steps | " + " | ".join(groups) + " |")
    print("|" + "---|" * (6 + len(groups)))
    for name, rows in by_variant.items():
        first = rows[0]
        cells = [f"({name})", VARIANTS[name].title, len(rows), f"{first['parameters'] / 1e6:.2f} M"]
        cells += [f"{first['gflops_per_step']:.2f}", first["steps"]]
        cells += [_spread([row["scores"][group] for row in rows]) for group in groups]
        print("| " + " | ".join(map(str, cells)) + " |")
    values = [row["image grid 4"]["mean"] for row in by_variant.get("e", [])]
    if values:
        shares = [value / row["scores"]["mean"] for value, row in zip(values, by_variant["e"], strict=True)]
        print(f"\n(g) e with 16 of 36 image tokens: mean {_spread(values)}, {_spread(shares)} of that with all")
    if plot is not None:
        _draw(by_variant, plot)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def _draw(by_variant: dict[str, list[dict]], path: Path):
    """Draw bars of the means, a panel for each score."""
    groups = ["mean", "easy-VQA", *TASKS, "caption"]
    figure, axes = plt.subplots(1, len(groups), figsize=(12, 2.8), sharey=True, layout="constrained")
    for axis, group in zip(axes, groups, strict=True):
        for number, rows in enumerate(by_variant.values()):
            values = [row["scores"][group] for row in rows]
            axis.bar(number, np.mean(values), color=f"C{number}")
            axis.plot([number] * len(values), values, "k.", markersize=4)
        axis.set(title=group, ylim=(0, 1.02))
        axis.set_xticks(range(len(by_variant)), by_variant, fontsize=7, rotation=90)
    axes[0].set_ylabel("exact answers (dots: seeds)")
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--work-dir", type=Path, default=Path("out/tiny"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--teraflops", type=float, default=8, help="training compute of each run")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    args = parser.parse_args()
    path = args.work_dir / "ablation" / "results.jsonl"
    if args.command == "run":
        for seed in args.seeds:
            for name in args.variants:
                done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
                key = (name, seed, args.teraflops)
                if not any((row["variant"], row["seed"], row["teraflops"]) == key for row in done):
                    result = run(name, seed, args.work_dir, args.teraflops)
                    with path.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    print(json.dumps(result), flush=True)
    else:
        results = [json.loads(line) for line in path.read_text().splitlines()]
        report([row for row in results if row["teraflops"] == args.teraflops], args.plot)


if __name__ == "__main__":
    main()
