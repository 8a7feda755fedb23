"""
Judge exact answers by another eye: read the images of a run with OCR and pixel measurements, and answer its questions.

    python benchmarks/pixel_judge.py RUN [--num N] [--ocr N]

RUN is a folder of `fusion-vlm synthesize` with `--llava --image-format png`. The judge sees images and questions,
imports nothing of the package, and knows neither scenes nor pages. It needs numpy, Pillow, scipy, and for texts
`pip install rapidocr-onnxruntime`; what OCR has read is kept in RUN/ocr.jsonl.

For each type of question the judge prints how many answers there were, how many it could judge, and how many it
confirms. It also judges wrong answers of the same form in place of the right ones. A judge that confirms those is no
judge. Each answer that it does not confirm is listed.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from judge_answers import solve
from judge_captions import check_claims
from judge_charts import read_chart
from judge_contrasts import Halves, split_halves
from judge_pages import solve_chart, solve_document, solve_table
from judge_scenes import Picture
from judge_signs import Signs
from judge_tables import read_table
from judge_text import Line
from judge_verdicts import agrees, agrees_on_page, plant_on_page, plant_wrong, split_options
from PIL import Image


PAGES = ("chart", "table", "document")
COUNTS = ("asked", "judged", "confirmed", "planted", "accepted")


def read_turns(row: dict) -> list[tuple[str, str, str]]:
    """Return question, answer and type of each turn of a row."""
    said = [turn["value"].replace("<image>\n", "") for turn in row["conversations"]]
    return list(zip(said[::2], said[1::2], row["question_types"], strict=True))


def read_pixels(run: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(run / "images" / name).convert("RGB"))


def read_lines(run: Path) -> dict[str, list[Line]]:
    """Return the lines of text of each image that OCR has read, from the cache `ocr.jsonl`."""
    path = run / "ocr.jsonl"
    if not path.exists():
        return {}
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {record["image"]: [Line(*line) for line in record["lines"]] for record in records}


def read_all_lines(run: Path, names: list[str]):
    """Read the lines of all images that the cache lacks, a few seconds each."""
    from rapidocr_onnxruntime import RapidOCR  # late: not needed when all images are in the cache

    engine, known = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1), read_lines(run)
    with (run / "ocr.jsonl").open("a", encoding="utf-8") as file:
        for name in names:
            if name in known:
                continue
            found, _ = engine(read_pixels(run, name)[:, :, ::-1])
            lines = []
            for corners, text, _ in found or []:
                x, y = zip(*corners, strict=True)
                lines.append([text, float(min(x)), float(min(y)), float(max(x)), float(max(y))])
            file.write(json.dumps({"image": name, "lines": lines}) + "\n")
            file.flush()


def has_text(row: dict) -> bool:
    """Check whether questions of a row ask for texts, as far as the questions tell."""
    questions = [question for question, _, _ in read_turns(row)]
    return row["kind"] in (*PAGES, "text_qa") or any(
        " sign" in question or "written" in question for question in questions
    )


def judge_page(row: dict, pixels: np.ndarray, lines: list[Line], rng: random.Random) -> Iterator[tuple]:
    """Yield what `judge_row` yields, for a chart, a table or a document."""
    reading, solver = {
        "chart": lambda: (read_chart(pixels, lines), solve_chart),
        "table": lambda: (read_table(lines), solve_table),
        "document": lambda: (lines, solve_document),
    }[row["kind"]]()
    for question, answer, _ in read_turns(row):
        stem, options = split_options(question)
        answer = options.get(answer, answer)
        expected = solver(stem, reading) if reading is not None else None
        wrong = None if expected is None else plant_on_page(expected, answer, [*options.values()], rng)
        check = partial(agrees_on_page, expected)
        yield f"{row['kind']}s", stem, answer, expected, check, wrong


def judge_scene(row: dict, pixels: np.ndarray, lines: list[Line] | None, rng: random.Random) -> Iterator[tuple]:
    """Yield what `judge_row` yields, for a scene or a contrast."""
    halves = split_halves(pixels)
    picture = None if halves else Picture(pixels)
    solver = Halves(*halves).solve if halves else partial(solve, picture=picture)
    signs = Signs(picture, lines) if picture and lines is not None else None
    for question, answer, type in read_turns(row):
        stem, options = split_options(question)
        if type == "caption":
            for claim, is_true, is_other_true in check_claims(picture, answer, rng) if picture else ():
                verdicts = {claim: is_true, "another color": is_other_true}
                yield (
                    "claims of captions",
                    claim,
                    claim,
                    is_true,
                    verdicts.get,
                    None if is_other_true is None else "another color",
                )
            continue
        answer = options.get(answer, answer)
        finding = signs.solve(stem) if signs and signs.texts else None
        finding = finding or solver(stem)
        if finding is None:
            yield "", stem, answer, None, None, None
            continue
        topic = finding.topic + (", yes or no" if finding.sort == "yes_no" else "")
        yield topic, stem, answer, finding.value, partial(agrees, finding), plant_wrong(finding, answer, rng)


def judge_row(row: dict, pixels: np.ndarray, lines: list[Line] | None, rng: random.Random) -> Iterator[tuple]:
    """
    Judge the turns of a row.

    Yields:
        type, question, answer, what the judge expects (None if the judge cannot tell), a function that checks an
        answer, and a wrong answer (None if none could be made).
    """
    if row["kind"] in PAGES:
        return judge_page(row, pixels, lines, rng) if lines is not None else iter(())
    return judge_scene(row, pixels, lines, rng)


def judge_run(run: Path, rows: list[dict]) -> tuple[dict[str, Counter], float]:
    """Judge rows, print each answer that is not confirmed, and return counts by type and the seconds of CPU time."""
    known, counts, rng = read_lines(run), {}, random.Random(0)
    start = time.process_time()
    for row in rows:
        pixels = read_pixels(run, row["image"])
        for type, question, answer, expected, check, wrong in judge_row(row, pixels, known.get(row["image"]), rng):
            count = counts.setdefault(type or f"not judged: {row['kind']}", Counter())
            count["asked"] += 1
            verdict = None if expected is None else check(answer)
            if verdict is None:
                continue
            count["judged"] += 1
            count["confirmed"] += bool(verdict)
            if not verdict:
                print(f"{row['image']} [{type}] {question!r} -> {answer!r}, the judge expects {expected!r}")
            if wrong is not None:
                count["planted"] += 1
                count["accepted"] += bool(check(wrong))
    return counts, time.process_time() - start


def print_table(counts: dict[str, Counter]):
    """Print what was asked, judged and confirmed of each type, and what was planted and accepted."""
    print(f"\n{'type':34}" + "".join(f"{name:>11}" for name in COUNTS))
    for type in sorted(counts):
        print(f"{type:34}" + "".join(f"{counts[type][name]:11}" for name in COUNTS))
    for label, names in (("all questions", [t for t in counts if "caption" not in t]), ("all", list(counts))):
        print(f"{label:34}" + "".join(f"{sum(counts[type][name] for type in names):11}" for name in COUNTS))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--num", type=int, metavar="N", help="images to judge (default: all)")
    parser.add_argument(
        "--ocr", type=int, default=0, metavar="N", help="images to read with OCR, beside those read before"
    )
    args = parser.parse_args()
    rows = json.loads((args.run / "train.json").read_text(encoding="utf-8"))[: args.num]
    if args.ocr:
        known = read_lines(args.run)
        read_all_lines(
            args.run, [row["image"] for row in rows if has_text(row) and row["image"] not in known][: args.ocr]
        )
    counts, seconds = judge_run(args.run, rows)
    print_table(counts)
    print(f"{len(rows)} images, {1000 * seconds / max(1, len(rows)):.0f} ms of CPU each")


if __name__ == "__main__":
    main()
