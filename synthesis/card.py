"""The card of a data set: what it holds, what was checked and what was not, licenses, sources, rejects and audit."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from fusion_vlm.synthesis.agreement import describe_verdicts
from fusion_vlm.synthesis.counts import MAX_LISTED, Counts
from fusion_vlm.synthesis.filters.duplicates import STAGE as NEAR_DUPLICATES
from fusion_vlm.synthesis.filters.named import CHECKS, name_stage, parse_filter
from fusion_vlm.synthesis.licenses import find_data_license, note_license
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.shards import SHARD_SUFFIXES
from fusion_vlm.synthesis.sheet import pick_accepted, pick_rejected, write_sheet


TEMPLATE = Path(__file__).with_name("card.md.jinja")
SAMPLES_SHEET, REJECTED_SHEET = "samples.png", "rejected.png"
# Size categories of the Hub, each with the number of samples that it ends below.
SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7}
NOT_RUN = "**not run**"


def write_sheets(folder: Path, counts: Counts) -> dict[str, str]:
    """Write the sheets of accepted and rejected samples in the folder of a run; return their names for `make_card`."""
    tiles = {
        "samples_sheet": (SAMPLES_SHEET, pick_accepted(folder, sorted(counts.kinds))),
        "rejected_sheet": (REJECTED_SHEET, pick_rejected(folder)),
    }
    return {key: name for key, (name, picked) in tiles.items() if write_sheet(picked, folder / name)}


def make_card(
    counts: Counts, audit_lines: list[str], info: dict[str, Any], options: Options, sheets: dict[str, str]
) -> str:
    """
    Write the card of a data set, with the front matter of the Hub.

    Args:
        counts (`Counts`): of the whole run.
        audit_lines (`list[str]`): what the audit says, in Markdown.
        info (`dict`): entries for the card: `license` (an identifier of the Hub, default `other`), `pretty_name` and
            `language` (default `en`). Other entries are written out.
        options (`Options`): of the run.
        sheets (`dict[str, str]`): file names of pictures, from `write_sheets`.
    """
    info = dict(info)
    suffix = SHARD_SUFFIXES[options.shard_format]
    data = DatasetCardData(
        language=info.pop("language", "en"),
        license=info.pop("license", "other"),
        pretty_name=info.pop("pretty_name", "Visual questions made from language"),
        task_categories=["visual-question-answering", "image-text-to-text"],
        tags=["synthetic", "llava", "fusion-vlm"],
        size_categories=[next((size for size, end in SIZES.items() if counts.num_samples < end), "n>10M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": f"data/train-*.{suffix}"}]}],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        num_samples=counts.num_samples,
        num_turns=counts.num_turns,
        num_rejected=counts.num_rejected,
        form=_describe_form(options),
        forms=list(_list_forms(options)),
        kinds=_sort_counts(counts.kinds),
        types=_sort_counts(counts.types),
        reasons=_sort_counts(counts.reasons),
        checks=[(name, _cell(result)) for name, result in list_checks(counts, options)],
        verdicts=describe_verdicts(counts.verdicts),
        licenses=list(list_licenses(counts, options)),
        seeds=", ".join(sorted(counts.seeds, key=int)) or "none",
        sources=list(_list_sources(counts)),
        sections=list(_list_sections(info)),
        audit="\n".join(audit_lines),
        **sheets,
    )
    return str(card).rstrip() + "\n"


def set_license(folder: Path, license_id: str):
    """Set the license in the card of a finished run."""
    card = DatasetCard.load(folder / "README.md")
    if card.data.license != license_id:
        card.data.license = license_id
        card.save(folder / "README.md")


def list_checks(counts: Counts, options: Options) -> Iterator[tuple[str, str]]:
    """Yield each check that data of this sort should have, with its result, or that it was not run."""

    def tell(how: str | None, *rejected_by: str) -> str:
        if how is None:
            return NOT_RUN
        num = sum(counts.reasons[reason] for reason in counts.reasons if reason.startswith(rejected_by))
        return f"{how}; {num} rejected"

    exact = "not run; not needed, since answers are exact: they follow from the drawn scene"
    judges = {
        "answers, by a judge of the text": (options.judge_model, "judge/wrong_answer"),
        "answers, by a judge that sees the image": (options.image_judge_model, "judge/wrong_answer_in_image"),
    }
    for name, (model, reason) in judges.items():
        yield name, f"{model}; {counts.reasons[reason]} rejected" if model else exact if options.is_exact else NOT_RUN
    yield "image and text, by CLIP", tell(options.clip_model, "image_filter/", "statement_filter/")
    distance = options.min_image_distance
    within = None if distance is None else f"within each part: hashes differ in {distance} bits or more"
    yield "near-duplicate images", tell(within, f"{NEAR_DUPLICATES}/")
    named = dict(map(parse_filter, options.filters))
    for name, what in CHECKS.items():
        yield what, tell(f"run {named[name]}".rstrip() if name in named else None, f"{name}/")
    for name in sorted(named.keys() - CHECKS):
        yield f"`{name}`", tell(f"run {named[name]}".rstrip(), f"{name_stage(name)}/")


def list_licenses(counts: Counts, options: Options) -> Iterator[str]:
    """Yield notes on the licenses of the captions and of the models that the data was made with."""
    yield (
        "The license above is that of the set as a whole, as its maker chose it: `other` until the maker says"
        " (`--license`)."
    )
    if options.rows:
        found = find_data_license(options.rows)
        where = "its card names `" + found + "`" if found else "its license is not known here: look it up"
        yield f"The captions have a license of their own, which holds for what was made of them; {where}."
    models = [options.model, options.judge_model, options.image_judge_model, options.image_model]
    for model in dict.fromkeys(model for model in models if model):
        yield f"{_cell(model)}: {note_license(model) or 'see the license of the model'}"
    if not any(models):
        yield "No model had a part in the texts and images."


def _describe_form(options: Options) -> str:
    if options.has_turns:
        return "an image and a conversation"
    return "an image and its description" if options.has_images else "a description"


def _list_forms(options: Options) -> Iterator[str]:
    if options.shard_format == "webdataset":
        yield "`data/` is a WebDataset: an image and a JSON object with `messages` for each sample."
    else:
        yield "`datasets.load_dataset` gives rows with `messages` and `images`."
    if options.llava:
        yield "`train.json` is the same in LLaVA's form, with the images in `images/`."


def _sort_counts(counts: Counter) -> list[tuple[str, int]]:
    return [(_cell(key), count) for key, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:200]


def _list_sources(counts: Counts) -> Iterator[str]:
    for name, values in sorted(counts.sources.items()):
        if values is None:
            yield f"{_cell(name)}: more than {MAX_LISTED} different"
        else:
            yield f"{_cell(name)}: {'; '.join(f'{_cell(value)} ({n})' for value, n in sorted(values.items()))}"
    for name, count in sorted(counts.missing_scores.items()):
        yield f"the score {_cell(name)} was not available for {count} samples"


def _list_sections(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in sorted(info.items()):
        text = value if isinstance(value, str) else json.dumps(value, indent=2, sort_keys=True, default=str)
        yield name.replace("_", " ").capitalize(), text
