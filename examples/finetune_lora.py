"""
Fine-tunes a converted FUSION on easy-VQA (real questions about 64x64 images, from PyPI): LoRA adapters in tower and
decoder, projectors and interaction layers in full. Prints loss and accuracy, saves their curves and the merged model.

    pip install -e ".[train]" easy-vqa
    python examples/finetune_lora.py [FOLDER] [--steps 200] [--output-dir out/easy-vqa]

Without a folder it starts from a small model with random weights (`random_model.py`), in minutes on two cores.
"""

import argparse
import random
from pathlib import Path

import easy_vqa
import matplotlib.pyplot as plt
from peft import get_peft_model
from random_model import write_small_model
from transformers import set_seed

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.lora import lora_config
from fusion_vlm.training.trainer import FusionTrainer, FusionTrainingArguments


def read_rows(questions: tuple, paths: dict[int, str], count: int) -> list[dict]:
    chosen = random.Random(0).sample(list(zip(*questions, strict=True)), count)
    turns = [[{"role": "user", "content": row[0]}, {"role": "assistant", "content": row[1]}] for row in chosen]
    return [{"messages": messages, "image": paths[row[2]]} for messages, row in zip(turns, chosen, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a converted FUSION")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output-dir", type=Path, default=Path("out/easy-vqa"))
    args = parser.parse_args()
    set_seed(0)
    folder = args.folder or write_small_model(args.output_dir / "base")

    processor = FusionProcessor.from_pretrained(folder)
    model = FusionForConditionalGeneration.from_pretrained(folder)
    model = get_peft_model(model, lora_config(model, tower=True, connectors=True, r=16))
    train = read_rows(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths(), 16 * args.steps)
    test = read_rows(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), 128)

    def accuracy(prediction) -> dict[str, float]:
        ids = [[row[row >= 0] for row in part] for part in (prediction.predictions, prediction.label_ids)]
        texts = [processor.batch_decode(rows, skip_special_tokens=True) for rows in ids]
        return {"accuracy": sum(map(str.__eq__, *texts)) / len(test)}

    arguments = FusionTrainingArguments(
        str(args.output_dir), max_steps=args.steps, per_device_train_batch_size=16, learning_rate=2e-3,
        logging_steps=5, eval_strategy="steps", eval_steps=args.steps // 4, eval_on_start=True, report_to="none",
        predict_with_generate=True, generation_max_new_tokens=8, save_strategy="no",
    )  # fmt: skip
    collator = FusionDataCollator(processor, latent_grid_sizes=model.config.latent_grid_sizes)
    trainer = FusionTrainer(
        model, arguments, data_collator=collator, train_dataset=train, eval_dataset=test, compute_metrics=accuracy,
        processing_class=processor,
    )  # fmt: skip
    trainer.train()

    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(args.output_dir / "merged")
    processor.save_pretrained(args.output_dir / "merged")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, name in zip(axes, ("loss", "eval_accuracy"), strict=True):
        points = [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]
        axis.plot(*zip(*points, strict=True))
        axis.set(xlabel="step", title=name)
    figure.savefig(args.output_dir / "curves.png")
    print(f"Curves: {args.output_dir}/curves.png, model: {args.output_dir}/merged")


if __name__ == "__main__":
    main()
