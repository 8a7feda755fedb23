"""
Judge exact answers by another eye: read the images of a run with OCR and pixel measurements, and answer its questions.

    python benchmarks/pixel_judge.py RUN [--num N]

RUN is a folder of `fusion-vlm synthesize` with `--llava --image-format png`. The judge sees images and questions,
imports nothing of the package, and knows neither scenes nor pages. It needs an environment of its own: pip install
scipy scikit-image rapidocr-onnxruntime. It prints for each type of question how many answers it could judge, and how
many of them it confirms; those that it does not are listed.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from judge_charts import read_chart
from judge_questions import solve_chart, solve_document, solve_table
from judge_scenes import check_claims
from judge_tables import read_table
from judge_text import Line
from PIL import Image


NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def read_turns(row: dict) -> list[tuple[str, str, str]]:
    """Return question, answer and type of each turn of a row."""
    said = [turn["value"].replace("<image>\n", "") for turn in row["conversations"]]
    return list(zip(said[::2], said[1::2], row["question_types"], strict=True))


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
            pixels = np.asarray(Image.open(run / "images" / name).convert("RGB"))
            found, _ = engine(pixels[:, :, ::-1])
            lines = []
            for corners, text, _ in found or []:
                x, y = zip(*corners, strict=True)
                lines.append([text, float(min(x)), float(min(y)), float(max(x)), float(max(y))])
            file.write(json.dumps({"image": name, "lines": lines}) + "\n")


def split_options(question: str) -> tuple[str, dict[str, str]]:
    """Return a question without its options, and the options by letter."""
    options = dict(re.findall(r"^([A-D])\. (.+)$", question, re.MULTILINE))
    return question.split("\n")[0], options


def agrees(expected, answer: str) -> bool:
    """Compare what the judge expects with an answer in a word, or in a sentence that holds it."""
    if isinstance(expected, (bool, np.bool_)):
        return answer.lower().startswith("yes" if expected else "no")
    if isinstance(expected, (int, float, np.number)):
        given = answer.rpartition("=")[2] if "=" in answer else answer
        numbers = [float(number.replace(",", "")) for number in NUMBER.findall(given)]
        return any(abs(number - expected) < 0.006 for number in numbers)
    if isinstance(expected, (list, tuple)):
        return all(agrees(part, answer) for part in expected)
    return normalize(expected) in normalize(answer)


def normalize(text: str) -> str:
    """Return letters and digits only: OCR loses blanks and signs."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def judge_row(row: dict, pixels: np.ndarray, lines: list[Line]):
    """Yield the type, the expected answer (None if it cannot be judged) and the answer of each turn of a row."""
    if row["kind"] == "chart":
        reading = read_chart(pixels, lines)
        solve = solve_chart
    elif row["kind"] == "table":
        reading, solve = read_table(lines), solve_table
    elif row["kind"] == "document":
        reading, solve = lines, solve_document
    else:
        yield from check_claims(pixels, [answer for _, answer, _ in read_turns(row)])
        return
    for question, answer, type in read_turns(row):
        stem, options = split_options(question)
        expected = solve(stem, reading) if reading is not None else None
        yield type, stem, expected, options.get(answer, answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--num", type=int, metavar="N", help="images to judge (default: all)")
    parser.add_argument("--cached", action="store_true", help="judge only images that OCR has read before")
    args = parser.parse_args()
    rows = json.loads((args.run / "train.json").read_text(encoding="utf-8"))[: args.num]
    pages = [row for row in rows if row["kind"] in ("chart", "table", "document")]
    if not args.cached:
        read_all_lines(args.run, [row["image"] for row in pages])
    known = read_lines(args.run)
    asked, judged, confirmed = Counter(), Counter(), Counter()
    for row in rows:
        if row in pages and row["image"] not in known:
            continue
        pixels = np.asarray(Image.open(args.run / "images" / row["image"]).convert("RGB"))
        for type, question, expected, answer in judge_row(row, pixels, known.get(row["image"], [])):
            key = (row["kind"], type)
            asked[key] += 1
            if expected is None:
                continue
            judged[key] += 1
            if agrees(expected, answer):
                confirmed[key] += 1
            elif "changed" not in type:
                print(f"{row['image']}: {question!r} -> {answer!r}, the judge expects {expected!r}")
    print(f"\n{'kind':20} {'type':26} {'asked':>6} {'judged':>7} {'confirmed':>10}")
    for key in sorted(asked):
        print(f"{key[0]:20} {key[1]:26} {asked[key]:6} {judged[key]:7} {confirmed[key]:10}")
    print(f"{'all':47} {asked.total():6} {judged.total():7} {confirmed.total():10}")


if __name__ == "__main__":
    main()
