"""The rows that a run begins from: readers of all forms, duplicates, rows prepared once, images, identity."""

import gzip
import json
import random
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fusion_vlm.rows.forms import RowError
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.sources import prepared
from fusion_vlm.synthesis.sources.duplicates import RULES, Duplicates, sign
from fusion_vlm.synthesis.sources.given import Columns
from fusion_vlm.synthesis.sources.identity import identify_input
from fusion_vlm.synthesis.sources.inputs import find_input
from fusion_vlm.synthesis.sources.prepared import PreparedRows, Request, prepare


CAPTIONS = ["a red ball", "", "  zwei B\u00e4lle ", "NA", "3 apples", "12"]
WORDS = [f"{first}{second}" for first in "bcdfghjklmnp" for second in ("ab", "ek", "iz", "ost", "und")]


def prepare_rows(path, folder: Path, stage: str = "descriptions", **settings) -> PreparedRows:
    columns = settings.pop("columns", Columns())
    request = Request(
        find_input(str(path), image_column=settings.pop("image_column", None)), columns, stage, **settings
    )
    prepare(request, folder)
    return PreparedRows(request, folder)


def read_given(path, folder: Path, stage: str = "descriptions", **settings) -> list[dict]:
    rows = prepare_rows(path, folder, stage, **settings)
    return [row.given for row in rows.read(range(len(rows)))]


def write_parquet(path: Path, **columns) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# -- forms


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    text = "\n".join(CAPTIONS) + "\n"
    (folder / "a.txt").write_text(text, encoding="utf-8-sig")
    (folder / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    rows = [{"caption": caption, "mixed": [1, "x"][index % 2]} for index, caption in enumerate(CAPTIONS)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (folder / "a.csv").write_text("caption,n\n" + "".join(f'"{caption}",1\n' for caption in CAPTIONS))
    (folder / "a.tsv").write_text("caption\tn\n" + "".join(f"{caption}\t1\n" for caption in CAPTIONS))
    write_parquet(folder / "a.parquet", caption=[caption or None for caption in CAPTIONS], n=[1] * len(CAPTIONS))
    datasets.Dataset.from_dict({"caption": CAPTIONS}).save_to_disk(folder / "disk")
    (folder / "folder").mkdir()
    write_parquet(folder / "folder" / "train.parquet", caption=CAPTIONS)
    (folder / "csv").mkdir()
    (folder / "csv" / "train.csv").write_text("caption\na red ball\n\n")
    return folder


@pytest.mark.parametrize(
    "name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json", "a.json.gz", "a.csv", "a.tsv", "a.parquet", "disk", "folder"]
)
def test_captions_of_every_form_are_read_alike(forms, tmp_path, name):
    given = read_given(forms / name, tmp_path / "rows")
    captions = ["a red ball", "zwei B\u00e4lle", "NA", "3 apples", "12"]
    assert [row["caption"] for row in given] == captions
    assert [row["source"]["row"] for row in given] == [0, 2, 3, 4, 5]
    # No path, which may differ between machines.
    (content,) = {row["source"]["captions"] for row in given}
    assert content.startswith("sha256:")


def test_a_pattern_of_files_is_read_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"in gzip\n") if name.endswith("gz") else f"in {name}\n".encode())
    given = read_given(tmp_path / "*.txt*", tmp_path / "rows")
    assert [(row["caption"], row["source"]["row"]) for row in given] == [
        ("in a.txt", 0),
        ("in b.txt", 1),
        ("in gzip", 2),
    ]
    (tmp_path / "d.csv").write_text("caption\nx\n")
    with pytest.raises(ValueError, match="2 kinds, csv, text"):
        find_input(str(tmp_path / "*.*"))


def test_only_line_ends_end_a_caption(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\u2028b\x0cc\r\nd\n".encode())
    assert [row["caption"] for row in read_given(tmp_path / "a.txt", tmp_path / "rows")] == ["a\u2028b\x0cc", "d"]


def test_another_column_and_split_can_be_read(tmp_path):
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", text=[f"in {split}"])
    request = Request(find_input(str(tmp_path), "test"), Columns(caption="text"), "descriptions")
    assert prepare(request, tmp_path / "work" / "rows")["num_rows"] == 1
    (row,) = PreparedRows(request, tmp_path / "work" / "rows").read(range(1))
    assert row.given["caption"] == "in test"
    with pytest.raises(ValueError, match="has the splits .*test.*train.*, expected 'dev'|expected 'dev'"):
        find_input(str(tmp_path), "dev")


def test_images_beside_the_captions_are_not_opened(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": b"no image", "path": None}], "caption": ["a ball"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert [row["caption"] for row in read_given(tmp_path / "train.parquet", tmp_path / "rows")] == ["a ball"]


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("a.jsonl", b'{"text": "a ball"}', ValueError, r"Row 0 of .* has the columns \['text'\], expected 'caption'"),
        ("a.jsonl", b'{"caption": "a"}\n{"text": "b"}', ValueError, "Row 1 of .* has the columns .*--caption-column"),
        ("a.jsonl", b'{"caption": "a"}\n["a ball"]', ValueError, "Row 1 of .* is a list, expected an object"),
        ("a.jsonl", b'{"caption": "a ball"}\nnot json\n', ValueError, "Row 1 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", b'{"caption": ["a ball"]}', ValueError, "has a list in the column 'caption', expected text"),
        ("a.csv", b"text,n\na ball,1\n", ValueError, r"has the columns \['n', 'text'\], expected 'caption'"),
        ("a.txt", b"a ball\nB\xe4lle\n", ValueError, "a.txt is not UTF-8, in row 0 or a later one"),
        ("a.txt.gz", b"a ball\n", ValueError, "a.txt.gz cannot be read in row 0 or a later one"),
        ("a.parquet", b"a ball\n", ValueError, "a.parquet cannot be read"),
        ("a.txt", b"\n\n", RunError, "has 0 captions, expected some"),
        ("a.doc", b"a ball\n", ValueError, "a.doc is none of .txt, .jsonl, "),
        ("a.txt", None, FileNotFoundError, "There is no .*a.txt"),
        ("a.parquet", None, FileNotFoundError, "There is no .*a.parquet"),
        ("*.txt", None, FileNotFoundError, "No file matches"),
    ],
)
def test_an_input_that_cannot_be_read_says_where_and_why(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_given(tmp_path / name, tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_too_few_rows_are_an_error_and_no_more_than_needed_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"caption": "a ball"}\n{"caption": "a cube"}\nnot json\n')
    assert len(read_given(tmp_path / "a.jsonl", tmp_path / "rows", num=2)) == 2
    (tmp_path / "a.txt").write_text("a ball\na cube\n")
    with pytest.raises(RunError, match=r"has 2 captions, expected 3 \(--num\)"):
        read_given(tmp_path / "a.txt", tmp_path / "others", num=3)


# -- duplicates


def long_text(seed: int, num_words: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=num_words)


def find_rules(texts: list[str]) -> list[str | None]:
    duplicates = Duplicates()
    for text in texts:
        duplicates.add(text)
    return [RULES[rule] or None for rule in duplicates.find()[1]]


def test_the_same_text_and_the_same_normalized_text_are_duplicates():
    texts = ["A red ball.", "A red ball.", "a RED  ball", "A red ball on a table", "\uff21 red ball!", "A red ball."]
    expected = [None, "same_text", "same_normalised_text", None, "same_normalised_text", "same_text"]
    assert find_rules(texts) == expected


def test_short_texts_that_differ_in_a_number_are_kept():
    texts = [f"{number} apples" for number in range(10)]
    texts += [f"{number} apples on a table beside a bowl and a cup, seen from above" for number in (3, 4, "3.5", "35")]
    assert find_rules(texts) == [None] * 14


def test_duplicates_name_the_first():
    duplicates = Duplicates()
    for text in ("a cube", "A ball", "a ball", "a cone", "a ball"):
        duplicates.add(text)
    assert duplicates.find()[0].tolist() == [0, 1, 1, 3, 1]


def test_long_texts_that_are_nearly_the_same_are_duplicates(monkeypatch):
    words = long_text(0, num_words=100)
    changed = [*words[:50], "other", *words[51:]]
    half = [*words[:50], *long_text(1, num_words=50)]
    texts = [" ".join(text) for text in (words, changed, half, long_text(2, num_words=100))]
    expected = [None, "nearly_same_text", None, None]
    assert find_rules(texts) == expected
    for name, value, found in (
        ("MIN_SIMILARITY", 0.99, [None] * 4),
        ("NUM_LONG_WORDS", 101, [None] * 4),
        ("NUM_LONG_WORDS", 100, expected),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"fusion_vlm.synthesis.sources.duplicates.{name}", value)
            assert find_rules(texts) == found


def test_a_near_duplicate_that_was_rejected_is_no_first():
    """Otherwise a chain of small changes would reject texts that are unlike all kept ones."""
    words = long_text(0, num_words=100)
    chain = [" ".join([*["new"] * count, *words[count:]]) for count in range(0, 100, 9)]
    assert None in find_rules(chain)[1:]


def test_similarity_is_estimated_within_its_error():
    """Compare with the Jaccard similarity by hand: with one of 100 words changed, 91 of 101 runs are equal."""
    errors = []
    for seed in range(30):
        words = long_text(seed, num_words=100)
        changed = [*words[:50], "other", *words[51:]]
        errors.append(float((sign(words) == sign(changed)).mean()) - 91 / 101)
    assert abs(sum(errors) / 30) < 0.02 and max(map(abs, errors)) < 0.12


def test_signatures_are_the_same_in_every_process():
    """A run that is prepared on another machine has to find the same duplicates."""
    assert sign(["a", "b", "c", "d", "e", "f"])[0] == 3379257556


# -- prepared once


def test_a_part_reads_its_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "SHARD_ROWS", 20)
    monkeypatch.setattr(prepared, "GROUP_ROWS", 5)
    captions = [f"caption {index % 31}" for index in range(53)]
    (tmp_path / "a.txt").write_text("\n".join(captions))
    rows = prepare_rows(tmp_path / "a.txt", tmp_path / "rows")
    assert len(rows) == 53 and len([*(tmp_path / "rows").glob("rows-*.parquet")]) == 3
    for start, stop in ((0, 53), (0, 1), (4, 6), (19, 21), (20, 40), (37, 53), (52, 53)):
        read = list(rows.read(range(start, stop)))
        assert [row.index for row in read] == [*range(start, stop)]
        assert [row.given["caption"] for row in read] == captions[start:stop]
        assert [(row.rule, row.first) for row in read if row.index >= 31] == [
            ("same_text", index - 31) for index in range(max(start, 31), stop)
        ]


def test_a_changed_input_is_refused_and_a_moved_one_is_not(tmp_path):
    (tmp_path / "a.txt").write_text("a ball\na cube\n")
    expected = read_given(tmp_path / "a.txt", tmp_path / "rows")
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert read_given(tmp_path / "b.txt", tmp_path / "rows") == expected
    (tmp_path / "b.txt").write_text("a ball\na cone\n")
    with pytest.raises(RunError, match="The content of .*b.txt has changed"):
        read_given(tmp_path / "b.txt", tmp_path / "rows")


def test_a_text_in_a_parquet_file_identifies_it_and_its_order_counts(tmp_path):
    hashes = set()
    for texts in (["aa", "bb", "cc"], ["aa", "bb", "cd"], ["bb", "aa", "cc"]):
        path = write_parquet(tmp_path / "a.parquet", caption=texts, image=[b"x" * 1000] * 3)
        hashes.add(identify_input(find_input(str(path))))
    assert len(hashes) == 3


def test_a_kill_while_preparing_leaves_nothing_that_counts(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a ball\na cube\n")
    for name in ("os.replace", "fusion_vlm.synthesis.sources.prepared.Duplicates.find"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(name, lambda *_: (_ for _ in ()).throw(SystemExit))
            prepare_rows(tmp_path / "a.txt", tmp_path / "rows")
        assert not (tmp_path / "rows").exists()
    rows = prepare_rows(tmp_path / "a.txt", tmp_path / "rows")
    assert len(rows) == 2 and not (tmp_path / "rows-unfinished").exists()


# -- rows that later stages begin from


def write_llava(folder: Path, num: int = 3) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(num):
        Image.new("RGB", (32, 32), (50 * index, 0, 0)).save(folder / "images" / f"{index}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Thing {index}."}]
        rows.append({"id": index, "image": f"{index}.jpg", "conversations": turns, "detail": f"It is thing {index}."})
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


def test_a_llava_set_gives_turns_and_images(tmp_path):
    rows = prepare_rows(write_llava(tmp_path / "set"), tmp_path / "rows", "filter")
    assert rows.info["keeps_ids"]
    for row in rows.read(range(3)):
        assert row.given["id"] == str(row.index)
        assert row.given["turns"] == [
            {"question": "What is it?", "answer": f"Thing {row.index}.", "type": "given", "options": []}
        ]
        content, suffix = rows.images.read(row.image)
        assert content == (tmp_path / "set" / "images" / f"{row.index}.jpg").read_bytes() and suffix == "jpg"


def test_a_llava_set_is_asked_again_from_a_column_or_from_its_answers(tmp_path):
    path = write_llava(tmp_path / "set") / "train.json"
    for column, expected in (("detail", "It is thing 0."), ("conversations", "Thing 0.")):
        given = read_given(path, tmp_path / column, "questions", columns=Columns(description=column))
        assert given[0]["description"] == expected and "turns" not in given[0]
    with pytest.raises(ValueError, match=r"expected 'description' .*--description-column NAME. To take the answers"):
        read_given(path, tmp_path / "rows", "questions")


def test_descriptions_come_from_text_files_too(tmp_path):
    (tmp_path / "a.txt").write_text("A red ball lies on a table.\n")
    (given,) = read_given(tmp_path / "a.txt", tmp_path / "rows", "images")
    assert given["description"] == "A red ball lies on a table." and given["caption"] == ""
    with pytest.raises(ValueError, match="expected 'description' among them"):
        read_given(tmp_path / "a.txt", tmp_path / "others", "questions")


def test_images_in_tables_are_read_in_any_form_and_order(tmp_path):
    write_llava(tmp_path / "set", 40)
    paths = [str(tmp_path / "set" / "images" / f"{index}.jpg") for index in range(40)]
    table = datasets.Dataset.from_dict({"picture": paths, "description": [f"d {index}" for index in range(40)]})
    table = table.cast_column("picture", datasets.Image())
    table.to_parquet(tmp_path / "a.parquet", batch_size=7)
    table.save_to_disk(tmp_path / "disk")
    for name in ("a.parquet", "disk"):
        rows = prepare_rows(tmp_path / name, tmp_path / f"{name} rows", "questions", image_column="picture")
        for part in (range(40), range(5, 9), range(30, 40), range(2)):
            for row in rows.read(part):
                assert rows.images.read(row.image)[0] == Path(paths[row.index]).read_bytes()


def test_a_folder_of_pictures_with_metadata_is_read(tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "train" / "a.png")
    (tmp_path / "set" / "train" / "metadata.jsonl").write_text('{"file_name": "a.png", "description": "Black."}\n')
    rows = prepare_rows(tmp_path / "set", tmp_path / "rows", "questions")
    (row,) = rows.read(range(1))
    assert row.given["description"] == "Black." and rows.images.read(row.image)[1] == "png"


def test_broken_rows_are_rejected_with_their_reason(tmp_path):
    folder = write_llava(tmp_path / "set")
    rows = json.loads((folder / "train.json").read_text())
    turns = rows[0]["conversations"]
    rows += [
        {"id": "text only", "conversations": [{**turns[0], "value": "What?"}, turns[1]]},
        {"id": "no answer", "image": "0.jpg", "conversations": turns[:1]},
        {"id": "system", "image": "0.jpg", "conversations": [{"from": "system", "value": "Be kind."}, *turns]},
        {"id": "no file", "image": "missing.jpg", "conversations": turns},
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    prepared_rows = prepare_rows(folder, tmp_path / "rows", "filter")
    assert not prepared_rows.info["keeps_ids"]  # with a space, an id cannot name a file
    text_only, no_answer, system, no_file = list(prepared_rows.read(range(3, 7)))
    assert "expected a question and an answer" in no_answer.given["reason"]
    assert "the roles are system, user, assistant" in system.given["reason"]
    with pytest.raises(RowError, match="has no image"):
        prepared_rows.images.read(text_only.image)
    with pytest.raises(RowError, match="no such file"):
        prepared_rows.images.read(no_file.image)
    (folder / "images" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(RowError, match="cannot be read"):
        prepared_rows.images.read("0.jpg")


def test_missing_images_end_a_run_before_it_begins(tmp_path):
    path = write_llava(tmp_path / "set") / "train.json"
    (tmp_path / "set" / "images").rename(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match="None of the first images .*--image-folder"):
        prepare_rows(path, tmp_path / "rows", "filter")
    rows = prepare_rows(path, tmp_path / "rows", "filter", image_folder=str(tmp_path / "pictures"))
    assert rows.images.read("0.jpg")[1] == "jpg"


def test_a_set_without_a_usable_row_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"description": ""}\n{"description": "  "}\n')
    with pytest.raises(ValueError, match="No row of .* can be used. The first: input/row: it has no description"):
        prepare_rows(tmp_path / "a.jsonl", tmp_path / "rows", "images")
