"""
Show in a model card what `fusion-vlm evaluate` measured, apart from what the authors report.

The runs lie in the folder `evaluation/`, one JSON file for each setting (dtype, latents, 4 bits). All that is shown
comes from them: a section of the card, its metadata, and files in `.eval_results/` that hold no other results.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml


RUNS = "evaluation"
BEGIN, END = "<!-- What fusion-vlm evaluate measured -->", "<!-- End of what fusion-vlm evaluate measured -->"
# The section stands before the first of these, or at the end.
FOLLOWING = ("\n## Training\n", "\n## Limits and biases\n", "\n## License\n", "\n## Citation\n")
HARNESS_URL = "https://github.com/EvolvingLMMs-Lab/lmms-eval"
PIPELINE_TAG = "image-text-to-text"
# The task id that `.eval_results` requires. The Hub shows only ids that are listed in the eval.yaml of the dataset.
EVAL_TASK_ID = "default"


def save_run(folder: Path, run: dict) -> Path:
    """
    Save a run of `fusion-vlm evaluate` in the folder of its model.

    Rows of an earlier run with the same settings stay, unless this run measured them again.

    Args:
        folder (`Path`): folder of the model.
        run (`dict`): with `settings` of the model, `harness` and `rows`.

    Returns:
        `Path`: the file, named after the settings.
    """
    path = folder / RUNS / f"{name_setting(run['settings'])}.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if all(old["settings"].get(name) == run["settings"][name] for name in ("weights", "dtype")):
            new = {row["name"] for row in run["rows"]}
            run = {**run, "rows": [row for row in old["rows"] if row["name"] not in new] + run["rows"]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def name_setting(settings: dict) -> str:
    """Return a file name for the settings of a model, such as `float16-latents-8`."""
    seed = settings["draw_latents"]
    latents = f"latents-{settings['latent_grid_size']}" if seed is None else f"latents-drawn-{seed}"
    parts = [settings["dtype"], latents, settings.get("quantization")]
    return "-".join(part for part in parts if part)


def describe_setting(settings: dict) -> str:
    """Return the settings of a model in words."""
    grid, seed = settings["latent_grid_size"], settings["draw_latents"]
    latents = f"latents {grid}x{grid}" if seed is None else f"latents drawn with the seed {seed}"
    bits = f", in 4 bits ({settings['quantization']})" if settings.get("quantization") else ""
    return f"{settings['dtype']}, {latents}{bits}"


def read_runs(folder: Path) -> dict[str, dict]:
    """Read the runs that were saved in a folder, by the names of their files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / RUNS).glob("*.json"))}


def show_runs(folder: Path):
    """Write what was measured into the card of a folder and into `.eval_results/`; nothing if there are no runs."""
    runs = read_runs(folder)
    if not runs:
        return
    path = folder / "README.md"
    card = ModelCard.load(path)
    others = [result for result in card.data.eval_results or [] if result.source_url != HARNESS_URL]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = others + [result for run in runs.values() for result in make_results(run)]
    card.text = insert_section(card.text, make_section(runs))
    card.save(path)
    for name, run in runs.items():
        write_entries(folder, name, run)


def insert_section(text: str, section: str) -> str:
    """Return the text of a card with the section, in place of an earlier one."""
    text = re.sub(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", "\n\n", text, flags=re.DOTALL)
    places = [text.index(heading) for heading in FOLLOWING if heading in text]
    place = min(places, default=len(text))
    return f"{text[:place].rstrip()}\n\n{section}\n\n{text[place:].lstrip()}"


def make_section(runs: dict[str, dict]) -> str:
    """Return the section of a card."""
    lines = [
        BEGIN,
        "## Measured with lmms-eval",
        "",
        "With this folder, by `fusion-vlm evaluate`; the authors of FUSION",
    ]
    lines[-1] += " did not make these figures."
    for name, run in runs.items():
        lines += [
            "",
            f"{describe_setting(run['settings']).capitalize()}, lmms-eval {run['harness']}"
            f" ([the run]({RUNS}/{name}.json)):",
            "",
            "| data | task, metric | split | questions | value |",
            "|---|---|---|---|---|",
        ]
        for row in run["rows"]:
            judge = f", graded by {row['judge']['model']}" if row["judge"] else ""
            cells = [row["name"], f"`{row['task']}`, {row['metric']}{judge}", row["split"], str(row["num_questions"])]
            lines.append("| " + " | ".join([*cells, f"{row['value']:.1f}"]) + " |")
    return "\n".join([*lines, END])


def make_results(run: dict) -> list[EvalResult]:
    """
    Return the rows of a run for the metadata of a card.

    The Hub joins results on the same data and split, so the metric names the setting.
    """
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=row["data"],
            dataset_name=row["name"],
            dataset_split=row["split"],
            metric_type="score",
            metric_name=f"{row['metric']} ({describe_setting(run['settings'])})",
            metric_value=round(row["value"], 2),
            source_name=f"lmms-eval {run['harness']}, fusion-vlm evaluate",
            source_url=HARNESS_URL,
        )
        for row in run["rows"]
    ]


def write_entries(folder: Path, name: str, run: dict):
    """Write the rows of a run to `.eval_results/`, a file for each data set and setting, in place of earlier ones."""
    for path in (folder / ".eval_results").glob(f"*.{name}.yaml"):
        path.unlink()
    files: dict[str, list[EvalResultEntry]] = defaultdict(list)
    for row in run["rows"]:
        judge = f", graded by {row['judge']['model']}" if row["judge"] else ""
        notes = (
            f"{row['name']}: {row['task']}, {row['metric']} (lmms-eval {run['harness']}, fusion-vlm evaluate); split"
            f" {row['split']}, {row['num_questions']} questions; {describe_setting(run['settings'])}{judge}; run:"
            f" {RUNS}/{name}.json"
        )
        entry = EvalResultEntry(
            dataset_id=row["data"],
            task_id=EVAL_TASK_ID,
            value=round(row["value"], 2),
            date=row["finished"][:10],
            notes=notes,
        )
        files[row["data"].split("/")[-1].lower()].append(entry)
    for data, entries in files.items():
        path = folder / ".eval_results" / f"{data}.{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))
