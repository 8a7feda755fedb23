"""
Train the small FUSION of `small_model/model` from nothing.

The steps are data (`data.py`), a tokenizer, a pretrained tower (`tower.py`), the three stages of training
(`recipes/`), curves, and the folder that is shipped.

    pip install -e ".[train,synthesis]" easy-vqa
    python -m fusion_vlm.small_model.train [--work-dir out/tiny] [--output-dir small_model/model] [key=value ...]

The same command resumes a run that was stopped. After training, `python -m fusion_vlm.small_model.accuracy --json
small_model/model/results.json` measures, and this command once more writes the figures into the model card.
`key=value` overrides fields of all recipes, such as `training.use_cpu=false training.bf16=true` on a GPU. Training
takes about 100 minutes on two CPU cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.card import write_card
from fusion_vlm.hub.endpoint import SHIPPED_FILES
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionImageProcessor, FusionProcessor
from fusion_vlm.small_model.data import list_files, list_objects, make_data
from fusion_vlm.small_model.grammar.questions import SHORT_HINT
from fusion_vlm.small_model.tower import PatchExamples, pretrain
from fusion_vlm.training.build import load_recipe


ROOT = Path(__file__).resolve().parent
RECIPES = ROOT / "recipes"
STAGES = ("stage1", "stage1_5", "stage2")
CROP_SIZE, PATCH_SIZE = 72, 12
VOCAB_SIZE = 1024
TOWER_STEPS = 2000
# Id 0 is the padding token: FUSION does not count id 0 as a question token.
SPECIAL_TOKENS = (
    "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>", "<latent>", "<vision_start>", "<vision_end>",
)  # fmt: skip

# Examples of the model card: image, question, title. The questions get the hint, or answers would be sentences.
EXAMPLES = (
    ("stars", "What is the colour of the circle?", "A colour"),
    ("stars", "How many red objects are there?", "A number"),
    ("stars", "Where is the circle?", "A place"),
)
DESCRIPTION = """
The smallest FUSION that answers: two million parameters, trained from nothing on two CPU cores with the training
code of this project, on drawn scenes and on easy-VQA. Use it to try the package, to test it and to learn from it. It
answers questions about flat shapes, their colours and places in square pictures, and none about photographs. It is
best at questions that ask for a single word or phrase. It counts up to six, and is wrong about one number in ten."""


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which encodes any text, with the words of the training data as whole tokens."""
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
    """Build the model with two million random parameters."""
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
    """Return all questions and answers of files of rows."""
    rows = [row for path in paths for row in json.loads(path.read_text())]
    return [turn["value"].removeprefix("<image>\n") for row in rows for turn in row["conversations"]]


def make_start(work_dir: Path):
    """Make what training starts from: data, and a model with a pretrained tower, random elsewhere."""
    make_data(work_dir / "data")
    if not (work_dir / "start" / "model.safetensors").exists():
        processor = make_processor(read_texts(list_files(work_dir / "data")))
        processor.save_pretrained(work_dir / "start")
        model = make_model(processor)
        examples = PatchExamples(CROP_SIZE, PATCH_SIZE, list_objects())
        pretrain(model.model.vision_tower, examples, work_dir / "tower", TOWER_STEPS)
        model.save_pretrained(work_dir / "start")


def train_stages(work_dir: Path, num_processes: int, overrides: list[str]):
    source = work_dir / "start"
    for stage in STAGES:
        output = work_dir / stage
        if not (output / "trainer_state.json").exists():  # the last file that a run writes
            print(f"{stage}: {source} -> {output}", flush=True)
            # Paths of data are relative to the recipe, so the recipe is copied beside the data.
            recipe = shutil.copy(RECIPES / f"{stage}.yaml", work_dir / "data")
            batch_size = load_recipe(recipe).global_batch_size // num_processes
            launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", num_processes]
            stage_overrides = [
                f"model.path={source}",
                f"training.output_dir={output}",
                f"training.per_device_train_batch_size={batch_size}",
            ]
            command = [sys.executable, "-m", *launch, "-m", "fusion_vlm.training.train", recipe]
            command += [*stage_overrides, *overrides]
            subprocess.run([str(part) for part in command], check=True)
        source = output


def draw_curves(work_dir: Path, path: Path):
    """Plot the losses of all stages, one after the other."""
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
    Write the folder that is shipped: weights in bfloat16, and a model card.

    The code in the folder is linked to the files of this repository, so that the two cannot differ. Figures that were
    measured on other weights are removed.
    """
    weights, results = output_dir / "model.safetensors", output_dir / "results.json"
    before = weights.read_bytes() if weights.exists() else None
    processor = FusionProcessor.from_pretrained(work_dir / STAGES[-1])
    model = FusionForConditionalGeneration.from_pretrained(work_dir / STAGES[-1], dtype=torch.bfloat16)
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for file in Path(folder).iterdir():
            if file.suffix != ".py":
                shutil.copy(file, output_dir)
    weights.chmod(0o644)
    if weights.read_bytes() != before:
        results.unlink(missing_ok=True)
    for name in SHIPPED_FILES:
        (output_dir / name).unlink(missing_ok=True)
        (output_dir / name).symlink_to(os.path.relpath(ROOT.parent / name, output_dir.resolve()))
    draw_curves(work_dir, output_dir / "curves.png")
    write_small_model_card(output_dir)


def write_small_model_card(folder: Path):
    """Write the model card, with the figures that `accuracy.py --json FOLDER/results.json` has measured, if any."""
    path = folder / "results.json"
    rows = read_results(json.loads(path.read_text())) if path.exists() else None
    examples = [
        {
            "image": ROOT.parent / "examples" / "images" / f"{name}.png",
            "question": f"{question}\n{SHORT_HINT}",
            "title": title,
        }
        for name, question, title in EXAMPLES
    ]
    write_card(
        folder,
        name="FUSION-tiny",
        description=DESCRIPTION,
        license="apache-2.0",
        results=rows,
        examples=examples,
        ask=True,
        handler=True,
    )


def read_results(measured: dict) -> list[dict]:
    """Return the rows of the card: accuracies on easy-VQA and on each kind of scenes."""
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override fields of all recipes")
    parser.add_argument("--work-dir", type=Path, default=Path("out/tiny"))
    parser.add_argument("--output-dir", type=Path, default=ROOT / "model")
    parser.add_argument("--num-processes", type=int, default=2, help="each has one thread, or one GPU (default: 2)")
    args = parser.parse_args()
    make_start(args.work_dir)
    train_stages(args.work_dir, args.num_processes, args.overrides)
    export(args.work_dir, args.output_dir)
    print(f"Trained model: {args.output_dir}")


if __name__ == "__main__":
    main()
