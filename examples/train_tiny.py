"""
From nothing to the small trained FUSION of `examples/tiny`: data (scenes of the data engine, easy-VQA), a tokenizer, a
pretrained tower (`pretrain_tower.py`), the three stages of training (`tiny_recipes/`), curves, and the folder that is
shipped.

    pip install -e ".[train,synthesis]" easy-vqa
    python examples/train_tiny.py [--work-dir out/tiny] [--output-dir examples/tiny] [key=value ...]

Started again, it goes on where it was stopped. `key=value` changes all recipes, `training.use_cpu=false
training.bf16=true` on a GPU. It takes about 80 minutes on two CPU cores.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import easy_vqa
import matplotlib.pyplot as plt
import torch
from pretrain_tower import pretrain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.convert_checkpoints import SHIPPED_FILES
from fusion_vlm.hub.card import write_card
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionImageProcessor, FusionProcessor
from fusion_vlm.synthesis import generate
from fusion_vlm.synthesis.sample import CAPTION_KINDS, INSTRUCTION_KINDS
from fusion_vlm.synthesis.scene import COLOURS, SHAPES
from fusion_vlm.training.build import load_recipe


ROOT = Path(__file__).resolve().parent
RECIPES = ROOT / "tiny_recipes"
STAGES = ("stage1", "stage1_5", "stage2", "stage2_short")
# Folder of the scenes, seed, number and kinds. Short questions are the most to learn from, so more is drawn of them.
SCENES = (
    ("captions", 11, 15000, CAPTION_KINDS),
    ("instructions", 12, 14000, INSTRUCTION_KINDS),
    ("questions", 13, 40000, ("short_conversation",)),
)
IMAGE_SIZE = 144  # of a scene: twice the crop, so that the crops show it as it was drawn
CROP_SIZE, PATCH_SIZE = 72, 12
EASY_VQA_SHAPES = {"circle", "rectangle", "triangle"}
EASY_VQA_COLOURS = {"black", "blue", "brown", "gray", "green", "red", "teal", "yellow"}
VOCAB_SIZE = 1024
TOWER_STEPS = 2000
# Id 0 is the padding: FUSION takes that id for no question token (SPEC section 3).
SPECIAL_TOKENS = (
    "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>", "<latent>", "<vision_start>", "<vision_end>",
)  # fmt: skip

HINT = "\nAnswer with a single word or phrase."  # of the scenes' short questions; without, answers are sentences
# Of the model card: image, question, title.
EXAMPLES = (
    ("stars", "What is the colour of the circle?" + HINT, "A colour"),
    ("stars", "How many red objects are there?" + HINT, "A number"),
    ("beach", "What shape is the green object?" + HINT, "A shape"),
)
DESCRIPTION = """
The smallest FUSION that answers: two million parameters, trained from nothing on two CPU cores with the training
code of this project, on drawn scenes and on easy-VQA. It is there to try the package, to test it and to learn from. It
knows flat shapes, colours and numbers, and nothing of photographs; it does not tell where things are, and finds the
colour of a named shape among others in a third of cases only."""


def make_scenes(folder: Path):
    for name, seed, number, kinds in SCENES:
        if not (folder / name / "done.json").exists():
            arguments = ["--num", number, "--seed", seed, "--image-size", IMAGE_SIZE, "--output", folder / name]
            generate.main([*map(str, arguments), "--kinds", *kinds])


def read_easy_vqa(questions: tuple[list[str], list[str], list[int]]) -> dict[int, list[tuple[str, str]]]:
    """Questions and answers about each image."""
    asked = defaultdict(list)
    for question, answer, image in zip(*questions, strict=True):
        asked[image].append((question, answer))
    return asked


def to_conversation(turns: list[tuple[str, str]]) -> list[dict]:
    """Questions and answers about an image in LLaVA's form."""
    conversation = [
        {"from": role, "value": text} for turn in turns for role, text in zip(("human", "gpt"), turn, strict=True)
    ]
    conversation[0]["value"] = "<image>\n" + conversation[0]["value"]
    return conversation


def make_easy_vqa(folder: Path, num_passes: int = 4, max_turns: int = 3):
    """
    Conversations about the images of easy-VQA's training split, in LLaVA's form. In each pass every question is asked
    once, in conversations of one to `max_turns` of them: turns share the image, so that more is learnt from a step.

    Most yes-or-no questions of the set ask for what is not there, and their words give five of six answers. So
    questions of the set about what is there are added, as many as make both alike, for shapes and for colours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    asked = read_easy_vqa(easy_vqa.get_train_questions())
    known = {image: looks for image, *looks in known_objects()}
    presence = sorted({question for questions in asked.values() for question, answer in questions if is_bool(answer)})
    rows = []
    for image, questions in sorted(asked.items()):
        missing = list(find_missing(questions, known.get(image, ()), presence))
        for _ in range(num_passes):
            left = list(questions)
            for there, number in missing:
                left += [(question, answer_there(question)) for question in rng.sample(there, number)]
            rng.shuffle(left)
            while left:
                number = rng.randint(1, max_turns)
                turns, left = left[:number], left[number:]
                row = {"id": f"{image}-{len(rows)}", "image": f"{image}.png"}
                rows.append({**row, "conversations": to_conversation(turns)})
    for image, path in easy_vqa.get_train_image_paths().items():
        shutil.copy(path, folder / f"{image}.png")
    (folder / "captions.json").write_text(json.dumps(list(caption_easy_vqa())))
    (folder / "train.json").write_text(json.dumps(rows))


def find_missing(questions: list[tuple[str, str]], looks: list[str], presence: list[str]) -> Iterator[tuple]:
    """For the shape and the colour of an object: questions about its presence, and how many of them to add."""
    for look in looks:
        kind = EASY_VQA_SHAPES if look in EASY_VQA_SHAPES else EASY_VQA_COLOURS
        there = [question for question in presence if look in words_of(question)]
        own = [question for question, answer in questions if is_bool(answer) and words_of(question) & kind]
        missing = len(own) - 2 * len(set(own) & set(there))
        yield there, min(max(missing, 0), len(there))


def answer_there(question: str) -> str:
    """To a yes-or-no question about what is there."""
    return "no" if is_negated(question) else "yes"


def is_bool(answer: str) -> bool:
    return answer in ("yes", "no")


def words_of(question: str) -> set[str]:
    return set(question.rstrip("?").split())


def is_negated(question: str) -> bool:
    """Of a yes-or-no question of easy-VQA: whether it asks if something is not there."""
    return bool(words_of(question) & {"not", "no"})


def known_objects() -> Iterator[tuple[int, str, str]]:
    """Image, colour and shape, for the images of the training split whose questions and answers tell both."""
    for image, questions in sorted(read_easy_vqa(easy_vqa.get_train_questions()).items()):
        found = set()
        for question, answer in questions:
            if not is_bool(answer):
                found |= words_of(question) | {answer}
            elif (answer == "yes") != is_negated(question):
                found |= words_of(question)
        shape, colour = found & EASY_VQA_SHAPES, found & EASY_VQA_COLOURS
        if shape and colour:
            yield image, colour.pop(), shape.pop()


def list_objects() -> list[tuple[str, str, str]]:
    """Path, colour and shape, for the same images."""
    paths = easy_vqa.get_train_image_paths()
    return [(paths[image], colour, shape) for image, colour, shape in known_objects()]


def caption_easy_vqa(prompts=("What is in the picture?", "Caption this image.")) -> Iterator[dict]:
    """One thing to see in each, to begin with."""
    for image, colour, shape in known_objects():
        for number, prompt in enumerate(prompts):
            conversation = to_conversation([(prompt, f"There is a {colour} {shape}.")])
            yield {"id": f"{image}-caption-{number}", "image": f"{image}.png", "conversations": conversation}


def ask_for_colours(folder: Path):
    """
    Makes of the captions of scenes, which name colours before shapes, rows that name shapes first: the other direction
    is not learnt from them. Those with two objects of a shape are left out.
    """
    rows = []
    for row in json.loads((folder / "train.json").read_text()):
        named = re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b(?!s)", row["conversations"][1]["value"])
        pairs = {shape: colour for colour, shape in named}
        if len(pairs) == len(named) > 1:
            answer = ", ".join(f"the {shape} is {colour}" for shape, colour in sorted(pairs.items()))
            turn = ("What colour is each shape?", answer.capitalize() + ".")
            rows.append(
                {"id": row["id"] + "-colours", "image": row["image"], "conversations": to_conversation([turn])}
            )
    (folder / "colours.json").write_text(json.dumps(rows))


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, which can write anything, with the words of the training data as whole tokens."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, words with the space before them.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[1],
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def make_processor(texts: list[str]) -> FusionProcessor:
    image_processor = FusionImageProcessor(
        size={"height": CROP_SIZE, "width": CROP_SIZE}, image_grid_size=CROP_SIZE // PATCH_SIZE, latent_grid_size=4
    )
    template = (RECIPES / "chat_template.jinja").read_text()
    return FusionProcessor(image_processor, make_tokenizer(texts), chat_template=template)


def make_model(processor: FusionProcessor) -> FusionForConditionalGeneration:
    """Two million random parameters."""
    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    special_ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = FusionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=CROP_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=2048,
            initializer_range=0.08,  # about 1 / sqrt(hidden_size); with the usual 0.02 narrow models learn slowly
            tie_word_embeddings=True,
            **special_ids,
        ),
        image_token_id=processor.image_token_id,
        latent_token_id=processor.latent_token_id,
        question_end_token_ids=processor.question_end_token_ids,
        interaction_layer_indices=[0, 1, 2],
        num_interaction_heads=4,
        latent_grid_size=4,
        latent_grid_sizes=[2, 4],
    )
    model = FusionForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special_ids, do_sample=False)
    return model


def read_texts(paths: list[Path]) -> list[str]:
    rows = [row for path in paths for row in json.loads(path.read_text())]
    return [turn["value"].removeprefix("<image>\n") for row in rows for turn in row["conversations"]]


def make_start(work_dir: Path):
    """All that training starts from: data, and a model whose tower is pretrained and the rest random."""
    make_scenes(work_dir / "data")
    if not (work_dir / "data" / "captions" / "colours.json").exists():
        ask_for_colours(work_dir / "data" / "captions")
    if not (work_dir / "data" / "easy_vqa" / "train.json").exists():
        make_easy_vqa(work_dir / "data" / "easy_vqa")
    if not (work_dir / "start" / "model.safetensors").exists():
        folders = [name for name, *_ in SCENES] + ["easy_vqa"]
        processor = make_processor(read_texts([work_dir / "data" / name / "train.json" for name in folders]))
        processor.save_pretrained(work_dir / "start")
        model = make_model(processor)
        pretrain(model.model.vision_tower, list_objects(), work_dir / "tower", TOWER_STEPS)
        model.save_pretrained(work_dir / "start")


def train_stages(work_dir: Path, num_processes: int, changes: list[str]):
    source = work_dir / "start"
    for stage in STAGES:
        output = work_dir / stage
        if not (output / "trainer_state.json").exists():  # the last that a run writes
            print(f"{stage}: {source} -> {output}", flush=True)
            # Beside the data, because its paths begin there.
            recipe = shutil.copy(RECIPES / f"{stage}.yaml", work_dir / "data")
            batch_size = load_recipe(recipe)["global_batch_size"] // num_processes
            launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", num_processes]
            own = [
                f"model.path={source}",
                f"training.output_dir={output}",
                f"training.per_device_train_batch_size={batch_size}",
            ]
            command = [sys.executable, "-m", *launch, "-m", "fusion_vlm.training.train", recipe, *own, *changes]
            subprocess.run([str(part) for part in command], check=True)
        source = output


def draw_curves(work_dir: Path, path: Path):
    """Losses of the stages, one after the other."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    first = 0
    for number, stage in enumerate(STAGES):
        log = json.loads((work_dir / stage / "trainer_state.json").read_text())["log_history"]
        log = [entry for entry in log if "loss" in entry]
        steps = [first + entry["step"] for entry in log]
        axes[0].plot(steps, [entry["language_loss"] for entry in log], f"C{number}", label=stage)
        for name, style in (("text_mapping_loss", "-"), ("vision_mapping_loss", "--")):
            label = f"{stage}, {name.split('_')[0]}"
            axes[1].plot(steps, [entry[name] for entry in log], style, color=f"C{number}", label=label)
        first = steps[-1]
    axes[0].set(xlabel="step", title="language loss", yscale="log")
    axes[1].set(xlabel="step", title="mapping loss")
    for axis in axes:
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def export(work_dir: Path, output_dir: Path):
    """
    Writes the folder that is shipped: bfloat16, with a model card. The code in it is links to that of this repository,
    so that it never is another one. Its weights are the means of those after the last two stages: that keeps what the
    last one forgets, and what it has learnt (WiSE-FT, arXiv 2109.01903).
    """
    processor = FusionProcessor.from_pretrained(work_dir / STAGES[-1])
    model = FusionForConditionalGeneration.from_pretrained(work_dir / STAGES[-1], dtype=torch.bfloat16)
    one, other = (
        FusionForConditionalGeneration.from_pretrained(work_dir / stage).state_dict() for stage in STAGES[-2:]
    )
    model.load_state_dict({name: (weight + other[name]) / 2 for name, weight in one.items()})
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for file in Path(folder).iterdir():
            if file.suffix != ".py":
                shutil.copy(file, output_dir)
    for name in SHIPPED_FILES:
        (output_dir / name).unlink(missing_ok=True)
        (output_dir / name).symlink_to(os.path.relpath(ROOT.parent / name, output_dir.resolve()))
    draw_curves(work_dir, output_dir / "curves.png")
    write_tiny_card(output_dir)


def write_tiny_card(folder: Path):
    """The model card, with the figures that `benchmarks/accuracy.py --json FOLDER/results.json` has measured."""
    path = folder / "results.json"
    rows = read_results(json.loads(path.read_text())) if path.exists() else None
    examples = [
        {"image": ROOT / "images" / f"{name}.png", "question": question, "title": title}
        for name, question, title in EXAMPLES
    ]
    write_card(
        folder, name="FUSION-tiny", description=DESCRIPTION, license="apache-2.0", results=rows, examples=examples
    )


def read_results(measured: dict) -> list[dict]:
    """Rows of the card: accuracies on easy-VQA and on each kind of scenes."""
    named = [("easy-VQA", "test", measured["easy-vqa"]["with image"])]
    named += [("drawn scenes", kind, scores["accuracy"]) for kind, scores in measured["scenes"].items()]
    return [
        {
            "dataset_name": name,
            "dataset_type": name.replace(" ", "-").lower(),
            "dataset_split": split,
            "metric_type": "f1" if split.startswith("caption") else "accuracy",
            "metric_value": round(value, 4),
        }
        for name, split, value in named
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes of all recipes")
    parser.add_argument("--work-dir", type=Path, default=Path("out/tiny"))
    parser.add_argument("--output-dir", type=Path, default=ROOT / "tiny")
    parser.add_argument("--num-processes", type=int, default=2, help="of one thread each, or GPU (default: 2)")
    args = parser.parse_args()
    make_start(args.work_dir)
    train_stages(args.work_dir, args.num_processes, args.changes)
    export(args.work_dir, args.output_dir)
    print(f"The trained model: {args.output_dir}")


if __name__ == "__main__":
    main()
