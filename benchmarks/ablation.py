"""
What each part of FUSION is worth, at small scale and at equal training compute. All variants start from the
same tower, projector and decoder, which have learnt to write captions without any of the parts (as the released
models start from a SigLIP and an LLM), and train with the same number of floating-point operations (counted),
so that one that leaves a part out takes more steps.

The tasks: easy-VQA (one object, 64x64 pixels), and scenes of four to seven objects, drawn at twice the side of
a crop: the shape of a large object that the question names by its colour, the number of objects of a colour,
and the shape of an object so small that it shows in the crops better than in the base image. Conversations of
one or two questions; each seed has its own weights and its own order of the data. `a*` is not at equal compute:
it takes as many steps as `e`, to tell what the parts bring for each example from what they cost.

    python benchmarks/ablation.py run [--seeds 0 1 2] [--variants a b c d e f a*] [--teraflops 5]
    python benchmarks/ablation.py report

A run is one line of `results.jsonl` in the work folder; what is there already is not run again. Several processes
can share the work, each with variants of its own. `report` prints the tables and draws the plot.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipAttention


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from accuracy import read_test_questions  # noqa: E402
from pretrain_tower import pretrain  # noqa: E402
from train_tiny import list_objects, make_start, to_conversation  # noqa: E402

from fusion_vlm.configuration_fusion import FusionConfig  # noqa: E402
from fusion_vlm.modeling_fusion import (  # noqa: E402
    FusionForConditionalGeneration,
    FusionVisionAttention,
    FusionVisionModel,
)
from fusion_vlm.processing_fusion import FusionProcessor  # noqa: E402
from fusion_vlm.synthesis.render import draw_scene  # noqa: E402
from fusion_vlm.synthesis.scene import COLOURS, SHAPES, Scene, SceneObject  # noqa: E402
from fusion_vlm.training.collator import FusionDataCollator  # noqa: E402
from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments  # noqa: E402


CROP_SIZE, PATCH_SIZE = 48, 8
SIDE = CROP_SIZE // PATCH_SIZE
LATENT_GRID_SIZES = [2, 4, 6, 8]
BATCH_SIZE, LEARNING_RATE = 16, 2e-3
# Rows of each data set, and of its held-out part.
NUM_TRAIN, NUM_TEST, MAX_TURNS = 14000, 600, 2
NUM_CAPTIONS = 8000
TOWER_STEPS, CAPTION_STEPS = 1500, 1500
TASKS = ("find", "count", "small")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Which parts of FUSION a model has."""

    title: str
    guided: bool = False  # the question in the tower
    mapping: bool = False  # the mapping loss
    interaction: bool = False  # latents and interaction layers
    paper_mask: bool = False  # patches of the early layers do not see the question, as the paper says


VARIANTS = {
    "a": Variant("LLaVA-style twin"),
    "b": Variant("a + text-guided encoding", guided=True),
    "c": Variant("b + mapping loss", guided=True, mapping=True),
    "d": Variant("a + interaction layers", interaction=True),
    "e": Variant("all", guided=True, mapping=True, interaction=True),
    "f": Variant("all, early mask of the paper", guided=True, mapping=True, interaction=True, paper_mask=True),
    "a*": Variant("a with the steps of e"),
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
    group: str  # what it counts for in the report


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
    """Rows with `messages`, `image` (a path) and `group`."""
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
        latent_grid_sizes (`list[int]`): drawn from for each batch.
        image_grid_size (`int`)
        seed (`int`): of the draws.
    """

    def __init__(self, variant: Variant, config: FusionConfig, latent_grid_sizes, image_grid_size=SIDE, seed=0):
        self.variant, self.config = variant, config
        self.latent_grid_sizes, self.image_grid_size = latent_grid_sizes, image_grid_size
        self.rng = random.Random(seed)

    def __call__(self, rows: list[tuple[Example, torch.Tensor]]) -> dict[str, torch.Tensor]:
        num_latents = self.rng.choice(self.latent_grid_sizes) ** 2
        expanded = [self._expand(example, num_latents) for example, _ in rows]
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

    def _expand(self, example: Example, num_latents: int) -> tuple[np.ndarray, np.ndarray]:
        repeats = np.ones_like(example.ids)
        repeats[example.ids == self.config.image_token_id] = self.image_grid_size**2
        latents = np.flatnonzero(example.ids == self.config.latent_token_id)
        repeats[latents] = num_latents
        if not self.variant.interaction:
            # The twin has no latents, and no frame around them.
            repeats[np.concatenate([latents - 1, latents, latents + 1])] = 0
        return np.repeat(example.ids, repeats), np.repeat(example.labels, repeats)


def _pad(rows: list[np.ndarray], value: int) -> torch.LongTensor:
    rows = [torch.from_numpy(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def load_examples(work_dir: Path, name: str) -> Examples:
    """The examples of one of `READERS`, prepared on the first call."""
    path = work_dir / "ablation" / f"{name}.pt"
    if not path.exists():
        make_start(work_dir)
        processor = FusionProcessor.from_pretrained(work_dir / "start")
        processor.image_processor.size = {"height": CROP_SIZE, "width": CROP_SIZE}
        path.parent.mkdir(exist_ok=True)
        part = prepare(READERS[name](work_dir), processor)
        torch.save((part.examples, part.pixels), path)
    return Examples(*torch.load(path, weights_only=False, mmap=True))


def read_captions(work_dir: Path) -> list[dict]:
    folder = work_dir / "data" / "captions"
    rows = json.loads((folder / "train.json").read_text())
    rows = [row for row in rows if row["kind"] != "caption_text"]
    return [
        {**row, "image": str(folder / "images" / row["image"]), "group": "caption"}
        for row in random.Random(0).sample(rows, NUM_CAPTIONS)
    ]


def read_train(work_dir: Path) -> list[dict]:
    rng = random.Random(0)
    rows = json.loads((work_dir / "data" / "easy_vqa" / "train.json").read_text())
    rows = [row for row in rows if len(row["conversations"]) <= 2 * MAX_TURNS]
    chosen = [
        {**row, "image": str(work_dir / "data" / "easy_vqa" / row["image"]), "group": "easy-VQA"}
        for row in rng.sample(rows, NUM_TRAIN)
    ]
    folder = work_dir / "ablation" / "train"
    return chosen + [make_scene(rng, folder / f"{index}.png", rng.sample(TASKS, 2)) for index in range(NUM_TRAIN)]


def read_test(work_dir: Path) -> list[dict]:
    """Single questions about images that training has not seen; a group for each task."""
    rng = random.Random(1)
    folder = work_dir / "ablation" / "test"
    rows = [make_scene(rng, folder / f"{index}.png", [TASKS[index % len(TASKS)]]) for index in range(NUM_TEST)]
    for path, question, answer in rng.sample(read_test_questions(), NUM_TEST):
        rows.append({"conversations": to_conversation([(question, answer)]), "image": path, "group": "easy-VQA"})
    return rows


READERS = {"captions": read_captions, "train": read_train, "test": read_test}


def make_scene(rng: random.Random, path: Path, tasks: list[str]) -> dict:
    """Draws four to seven objects in the cells of a 3 x 3 grid, and asks the questions of `tasks`."""
    cells = [(column, row) for column in range(3) for row in range(3)]
    rng.shuffle(cells)
    places = [tuple((place + 0.5) / 3 + rng.uniform(-0.05, 0.05) for place in cell) for cell in cells]
    shapes, colours = rng.sample(SHAPES, 4), rng.sample(list(COLOURS), 4)
    number = rng.randint(1, 4)
    # Two large objects and a small one, each of a shape and a colour of its own, and `number` of one colour.
    looks = [*zip(shapes[:3], colours[:3], ("large", "large", "small"), strict=True)]
    looks += [(shapes[3], colours[3], "large")] * number
    objects = [SceneObject(*look, *places.pop()) for look in looks]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_scene(Scene("white", objects), 2 * CROP_SIZE).save(path)
    one = rng.random() < 0.25
    turns = {
        "find": (f"What shape is the {colours[0]} object?", shapes[0]),
        "count": (f"How many {colours[1 if one else 3]} objects are there?", "1" if one else str(number)),
        "small": (f"What shape is the {colours[2]} object?", shapes[2]),
    }
    return {"conversations": to_conversation([turns[task] for task in tasks]), "image": str(path), "group": tasks[0]}


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
    """The tower that all runs start from, pretrained on the first call, as the released models start from SigLIP."""
    path = work_dir / "ablation" / "tower"
    if not path.exists():
        torch.manual_seed(0)
        tower = FusionVisionModel(VISION_CONFIG)
        pretrain(tower, list_objects(), work_dir / "ablation" / "tower-logs", TOWER_STEPS)
        tower.save_pretrained(path)
    return FusionVisionModel.from_pretrained(path)


def build_model(variant: Variant, work_dir: Path, seed: int) -> FusionForConditionalGeneration:
    """A million parameters: the tower, projector and decoder that all start from, and the variant's parts, random."""
    model = build_random_model(variant, work_dir, seed)
    weights = load_file(load_captioner(work_dir) / "model.safetensors")
    unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{work_dir / 'ablation' / 'captioner'} is no start for this model: {unexpected}. Remove it.")
    return model


def load_captioner(work_dir: Path) -> Path:
    """A twin (a) that has learnt to write captions, trained on the first call."""
    path = work_dir / "ablation" / "captioner"
    if not path.exists():
        model = build_random_model(VARIANTS["a"], work_dir, seed=0)
        tower = load_tower(work_dir)
        model.model.vision_tower.load_state_dict(tower.state_dict())
        collate = Collator(VARIANTS["a"], model.config, [1])
        train(model, load_examples(work_dir, "captions"), collate, work_dir / "ablation" / "logs", CAPTION_STEPS, 0)
        model.save_pretrained(path)
    return path


def build_random_model(variant: Variant, work_dir: Path, seed: int) -> FusionForConditionalGeneration:
    torch.manual_seed(seed)
    known = FusionConfig.from_pretrained(work_dir / "start")
    names = ("image_token_id", "latent_token_id", "question_end_token_ids")
    config = FusionConfig(
        vision_config=VISION_CONFIG.to_dict(),
        text_config=LlamaConfig(
            vocab_size=known.text_config.vocab_size,
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
        latent_grid_sizes=LATENT_GRID_SIZES,
        latent_grid_size=4,
        mapping_loss_coef=0.1 if variant.mapping else 0.0,
        **{name: getattr(known, name) for name in names},
    )
    model = FusionForConditionalGeneration(config)
    # The backward pass of the fused kernel is slow in bfloat16 on a CPU.
    model.set_attn_implementation("eager")
    if variant.paper_mask:
        for layer in model.model.vision_tower.encoder.layers:
            layer.self_attn.__class__ = PaperMaskAttention
    return model


def count_flops(model: FusionForConditionalGeneration, data: Examples, collate: Collator) -> float:
    """Operations of a training step, forward and backward: the mean over batches of all latent grids."""
    rng = random.Random(0)
    total = 0
    for size in LATENT_GRID_SIZES:
        fixed = Collator(collate.variant, collate.config, [size])
        for _ in range(3):
            with FlopCounterMode(display=False) as counter:
                model(**fixed([data[rng.randrange(len(data))] for _ in range(BATCH_SIZE)])).loss.backward()
            total += counter.get_total_flops()
    model.zero_grad()
    return total / (3 * len(LATENT_GRID_SIZES))


@torch.no_grad()
def evaluate(model: FusionForConditionalGeneration, data: Examples, collate: Collator) -> dict[str, float]:
    """
    Share of the answers of each group that greedy decoding would give exactly: those of which each token is the
    likeliest one after the tokens before it.
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
    scenes = [value for group, values in right.items() if group != "easy-VQA" for value in values]
    scores["scenes"] = sum(scenes) / len(scenes)
    scores["mean"] = (scores["easy-VQA"] + scores["scenes"]) / 2
    return scores


def train(
    model: FusionForConditionalGeneration, data: Examples, collate: Collator, folder: Path, steps: int, seed: int
) -> float:
    """Trains a model in place. Returns the last language loss that is logged."""
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
        bf16=True,
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
    """Trains a variant and evaluates it, the whole model also with other latent and image grids."""
    data, test = load_examples(work_dir, "train"), load_examples(work_dir, "test")
    variant = VARIANTS[name]
    model = build_model(variant, work_dir, seed)
    collate = Collator(variant, model.config, LATENT_GRID_SIZES, seed=seed)
    flops = count_flops(model, data, collate)
    steps = round(teraflops * 1e12 / flops)
    if name == "a*":
        model_e = build_model(VARIANTS["e"], work_dir, seed)
        steps = round(teraflops * 1e12 / count_flops(model_e, data, Collator(VARIANTS["e"], model_e.config, [4])))
    started = time.perf_counter()
    loss = train(model, data, collate, work_dir / "ablation" / f"{name}-{seed}", steps, seed)
    result = {
        "variant": name,
        "seed": seed,
        "parameters": model.num_parameters(),
        "gflops_per_step": flops / 1e9,
        "steps": steps,
        "seconds": time.perf_counter() - started,
        "loss": loss,
    }
    settings = [("scores", 4, SIDE)]
    if name == "e":
        settings += [(f"latents {size * size}", size, SIDE) for size in LATENT_GRID_SIZES if size != 4]
        settings += [("image grid 4", 4, 4)]
    for key, latents, grid in settings:
        result[key] = evaluate(model, test, Collator(variant, model.config, [latents], grid))
    return result


def report(results: list[dict], plot: Path | None):
    """Tables of means and standard deviations over the seeds, and a plot."""
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
    print("\nThe same weights with other grids at inference: mean score, and its share of the one with 16 and 36\n")
    rows = by_variant.get("e", [])
    for key in [key for key in (rows[0] if rows else ()) if key.startswith(("latents", "image grid"))]:
        values = [row[key]["mean"] for row in rows]
        share = [row[key]["mean"] / row["scores"]["mean"] for row in rows]
        print(f"(e) {key}: {_spread(values)}, share {_spread(share)}")
    if plot is not None:
        _draw(by_variant, plot)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def _draw(by_variant: dict[str, list[dict]], path: Path):
    groups = ["mean", "easy-VQA", "scenes"]
    figure, axis = plt.subplots(figsize=(9, 3.5), layout="constrained")
    for number, (name, rows) in enumerate(by_variant.items()):
        values = np.array([[row["scores"][group] for group in groups] for row in rows])
        places = np.arange(len(groups)) + (number - (len(by_variant) - 1) / 2) * 0.13
        axis.bar(places, values.mean(axis=0), 0.12, label=f"({name}) {VARIANTS[name].title}", color=f"C{number}")
        for row in values:
            axis.plot(places, row, "k.", markersize=3)
    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel="exact answers", ylim=(0, 1), title="Equal training compute; dots: seeds")
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--work-dir", type=Path, default=Path("out/tiny"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--teraflops", type=float, default=5, help="training compute of each run")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    args = parser.parse_args()
    path = args.work_dir / "ablation" / "results.jsonl"
    if args.command == "run":
        for seed in args.seeds:
            for name in args.variants:
                done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
                if not any((row["variant"], row["seed"]) == (name, seed) for row in done):
                    result = run(name, seed, args.work_dir, args.teraflops)
                    with path.open("a") as file:
                        file.write(json.dumps(result) + "\n")
                    print(json.dumps(result), flush=True)
    else:
        report([json.loads(line) for line in path.read_text().splitlines()], args.plot)


if __name__ == "__main__":
    main()
