"""Local tasks in the formats of lmms-eval and lm-eval: easy-VQA, and scenes that no training has seen."""

import random
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from fusion_vlm.small_model import accuracy
from fusion_vlm.small_model.data import read_easy_vqa
from fusion_vlm.small_model.grammar.questions import SHORT_HINT


FEATURES = Features(
    {"images": List(Image()), "question": Value("string"), "second": Value("string"), "answer": Value("string")}
)
LMMS_TASK = """\
task: {task}
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: {output_type}
doc_to_visual: !function easy_utils.list_images
doc_to_text: !function easy_utils.{ask}
doc_to_target: answer
process_results: !function easy_utils.score
generation_kwargs: {generation}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
LM_TASK = """\
task: {task}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_image: images
doc_to_text: "{text}"
doc_to_target: answer
generation_kwargs:
  until: []
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """\
def list_images(doc):
    return [image.convert("RGB") for image in doc["images"]]


def ask(doc, lmms_eval_specific_kwargs=None):
    return "<image>\\n" + doc["question"]


def ask_plainly(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def ask_twice(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if not round_idx:
        return doc["question"]
    seen = [*(previous_round_info or []), previous_output[-1]]
    if round_idx == 2:
        return None, None, True, previous_output, seen
    return list_images(doc), doc["second"], False, previous_output, seen


def score(doc, results):
    answers = results[0] if isinstance(results[0], (list, tuple)) else results
    return {"exact_match": float(answers[-1] == doc["answer"])}
"""


def read_easy_rows(number: int) -> list[dict]:
    rows = random.Random(0).sample(read_easy_vqa("test"), number)
    return [{"images": [row.path], "question": row.question, "second": "", "answer": row.answer} for row in rows]


def draw_scene_rows(folder: Path, number: int) -> list[dict]:
    """Draw scenes, and ask for the color, the shape and the place of one of their objects."""
    rng, rows = random.Random(3), []
    for index in range(number):
        scene, image = accuracy.draw_one(index, "caption_colour", accuracy.GROUNDS["objects"])
        path = folder / f"{index}.png"
        image.save(path)
        for name, fact in accuracy.ask_objects(rng, scene).items():
            if name in ("colour", "shape", "place"):
                question = f"{fact.question}\n{SHORT_HINT}"
                rows.append({"images": [str(path)], "question": question, "second": "", "answer": fact.answer})
    return rows


def save(rows: list[dict], folder: Path) -> Path:
    DatasetDict({"test": Dataset.from_list(rows, features=FEATURES)}).save_to_disk(folder)
    return folder


def write_lmms_tasks(folder: Path, number: int = 100) -> dict[str, list[dict]]:
    """
    Write tasks of lmms-eval and their documents; return the documents of each task.

    The tasks are `easy_vqa`, `easy_plain` (the same, without `<image>` in the prompts), `scenes`, `easy_text` (no
    images), `easy_two` (two images each, the second of another question), `easy_first` (the same, and the task asks
    for the first), `easy_bad` (two images in documents 1 and 3), and `easy_rounds` (two questions about an image, one
    after the other).
    """
    folder.mkdir(parents=True, exist_ok=True)
    easy = read_easy_rows(number)
    two = [{**row, "images": [*row["images"], *other["images"]]} for row, other in zip(easy, easy[1:], strict=False)]
    colour = {"question": "what shape is in the image?", "second": "what color is the shape?"}
    rounds = [{**row, **colour} for row in easy if row["question"] == "what color is the shape?"]
    tasks = {
        "easy_vqa": easy,
        "easy_plain": easy,
        "scenes": draw_scene_rows(folder, 12),
        "easy_text": [{**row, "images": []} for row in easy[:8]],
        "easy_two": two[:8],
        "easy_first": two[:8],
        "easy_bad": [two[index] if index in (1, 3) else easy[index] for index in range(6)],
        "easy_rounds": rounds[:8],
    }
    for task, rows in tasks.items():
        generation = "{max_new_tokens: 6, temperature: 0.7, do_sample: false, image_aspect_ratio: original}"
        if task == "easy_first":
            generation = "{max_new_tokens: 6, many_images: first}"
        is_rounds = task == "easy_rounds"
        yaml = LMMS_TASK.format(
            task=task,
            data=save(rows, folder / f"{task}_data"),
            output_type="generate_until_multi_round" if is_rounds else "generate_until",
            ask="ask_twice" if is_rounds else "ask_plainly" if task == "easy_plain" else "ask",
            generation=generation,
        )
        (folder / f"{task}.yaml").write_text(yaml)
    (folder / "easy_utils.py").write_text(UTILS)
    return tasks


def write_lm_tasks(folder: Path, rows: list[dict]):
    """
    Write tasks of lm-eval with these documents.

    The tasks are `easy_lm`, `easy_parts` (the image stands in the text), and `easy_blind` (no images).
    """
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=FEATURES).to_parquet(folder / "easy.parquet")
    texts = {"easy_lm": "<image>{{question}}", "easy_parts": "Look:<image>{{question}}"}
    for task, text in texts.items():
        (folder / f"{task}.yaml").write_text(LM_TASK.format(task=task, data=folder / "easy.parquet", text=text))
    blind = LM_TASK.format(task="easy_blind", data=folder / "easy.parquet", text="{{question}}")
    (folder / "easy_blind.yaml").write_text(blind.replace("doc_to_image: images\n", ""))
