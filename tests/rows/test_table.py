"""Tables of images, questions and answers: the forms that are read, and what is said about those that are not."""

import base64
import json
import unicodedata

import datasets
import pandas
import pytest
from PIL import Image

from fusion_vlm.rows.split import default_share, split_rows
from fusion_vlm.rows.table import BadRowsError, Columns, RowProblem, check_images, read_rows


ROWS = [("a.png", "Which shape?", "star"), ("b.png", "Which color, please?", "light blue, or grey")]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with two images, in a path that has a space."""
    folder = tmp_path / "my table"
    (folder / "sub dir").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "sub dir/c.png")):
        Image.new("RGB", (8, 8), (index * 40, 0, 0)).save(folder / name)
    return folder


def write(folder, text: str | bytes, name: str = "table.csv"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path, **options) -> list[tuple]:
    """Return image, question and answer of each row of a table without bad rows."""
    rows, problems, _ = read_rows(path, **options)
    assert not problems, problems
    return [simplify(row) for row in rows]


def simplify(row: dict) -> tuple:
    question, answer = row["messages"]
    images = [part["image"] for part in question["content"] if part["type"] == "image"]
    name = getattr(images[0], "name", images[0]) if images else None
    return name, question["content"][-1]["text"], answer["content"][0]["text"]


def find_problem(path, **options) -> str:
    rows, problems, _ = read_rows(path, **options)
    assert len(problems) == 1, problems
    return str(problems[0])


# Files --------------------------------------------------------------------------------------------------------------


def test_forms_of_a_file_give_the_same_rows(folder):
    frame = pandas.DataFrame(ROWS, columns=["image", "question", "answer"])
    frame.to_csv(folder / "table.csv", index=False)
    frame.to_csv(folder / "with_index.csv")
    frame.to_csv(folder / "excel.csv", index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n")
    frame.to_csv(folder / "table.tsv", index=False, sep="\t")
    frame.to_csv(folder / "bars.txt", index=False, sep="|")
    frame.to_csv(folder / "utf16.csv", index=False, encoding="utf-16")
    frame.to_csv(folder / "utf16le.csv", index=False, encoding="utf-16-le")
    frame.to_json(folder / "table.json", orient="records")
    frame.to_json(folder / "table.jsonl", orient="records", lines=True)
    frame.to_json(folder / "lines.json", orient="records", lines=True)
    frame.to_parquet(folder / "table.parquet")
    datasets.Dataset.from_pandas(frame).save_to_disk(folder)
    paths = [*folder.glob("*.[cjtp]s*"), *folder.glob("*.txt"), *folder.glob("*.parquet")]
    tables = [path for path in paths if path.name not in ("state.json", "dataset_info.json")]
    assert len(tables) == 11
    for path in (*tables, folder):
        assert read(path) == ROWS, path
    separated = "sep=;\r\n" + (folder / "excel.csv").read_text(encoding="utf-8-sig")
    assert read(write(folder, separated)) == ROWS


def test_csv_fields_may_hold_line_breaks_quotes_and_commas(folder):
    text = 'image,question,answer\n\n a.png , Which\n"one"?,"a ""red"", or\nblue one"\n,,\n\nb.png,"Which?",2,,\n'
    text = text.replace('Which\n"one"?', '"Which\none?"')
    rows, problems, _ = read_rows(write(folder, text))
    assert not problems
    assert [simplify(row) for row in rows] == [
        ("a.png", "Which\none?", 'a "red", or\nblue one'),
        ("b.png", "Which?", "2"),
    ]
    assert [row["source"] for row in rows] == ["table.csv, line 3", "table.csv, line 8"]


def test_windows_1252_is_read_with_a_notice(folder):
    path = write(folder, "image;question;answer\na.png;Welche Größe?;groß\n".encode("cp1252"))
    rows, _, notices = read_rows(path)
    assert simplify(rows[0]) == ("a.png", "Welche Größe?", "groß")
    assert "was read as Windows-1252, for example 'Größe'" in notices[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.xlsx", b"PK", "is a spreadsheet. Save the sheet as CSV"),
        ("table.csv.gz", b"\x1f\x8b", "is compressed. Unpack it"),
        ("table.png", b"", r"is of no kind that can be read: expected \.csv"),
        ("table.csv", b"", "is empty"),
        ("table.csv", b"\n\n", "holds no rows"),
        ("table.csv", b"image,question,answer\n", "holds no rows, only the names of columns"),
        ("table.csv", b"image,question,answer\na\x81,b,c\n", "unknown encoding.*Save it as UTF-8"),
        ("table.csv", b'image,question,answer\na,b,c\na,"b,c\nd,e,f\n', "quotation marks do not match.* line 3"),
        ("table.csv", b'image,question,answer\na,"b" x,c\n', "quotation marks do not match.* line 2"),
        ("table.json", b'[{"image": 1}, ', "is not valid JSON"),
        ("table.json", b'{"image": {"0": "a"},\n "answer": {"0": "b"}}', "one object with the keys 'image', 'answer'"),
        ("table.json", b'{"data": [{"question": "a", "answer": "b"}]}', "holds one object with the keys 'data'"),
        ("table.jsonl", b'{\n"answer": "b"\n}\n{\n"answer": "c"\n}\n', r"no line that is a row \(line 1: .*`jq -c`"),
        ("table.json", b"[]", "holds no rows"),
        ("table.parquet", b"PAR1", "is no parquet file"),
    ],
)
def test_files_that_cannot_be_read_say_why(name, content, message, folder):
    with pytest.raises(ValueError, match=message):
        read_rows(write(folder, content, name))


def test_folder_of_several_splits_says_so(folder):
    rows = datasets.Dataset.from_dict({"question": ["a"], "answer": ["b"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "splits")
    with pytest.raises(ValueError, match="several splits: test, train. Give one of them: .*/splits/test"):
        read_rows(folder / "splits")
    assert read(folder / "splits" / "train") == [(None, "a", "b")]


def test_missing_table_and_folders_say_what_is_there(folder):
    with pytest.raises(FileNotFoundError, match="There is no table .*nothing.csv"):
        read_rows(folder / "nothing.csv")
    with pytest.raises(ValueError, match="is a folder.*There is no table in it"):
        read_rows(folder)
    path = write(folder, "image,question,answer\na.png,b,c\n")
    with pytest.raises(ValueError, match="is a folder, expected a table.* In it are: table.csv"):
        read_rows(folder)
    path.rename(folder / "metadata.csv")  # of an image folder of `datasets`
    assert read(folder) == [("a.png", "b", "c")]
    with pytest.raises(ValueError, match="There is no folder of images"):
        read_rows(folder, image_folder=folder / "nowhere")


def test_parquet_of_datasets_holds_images_and_names_of_classes(folder):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["star", "cross"]), "n": datasets.Value("int8")}
    )
    table = {"image": [{"bytes": (folder / "a.png").read_bytes()}, None], "label": [1, 0], "n": [1, 2]}
    dataset = datasets.Dataset.from_dict(table, features=features)
    dataset.to_parquet(folder / "table.parquet")
    rows, problems, _ = read_rows(folder / "table.parquet", question="Which?")
    assert not problems
    image, question, answer = simplify(rows[0])
    assert image["bytes"] == (folder / "a.png").read_bytes()
    assert (question, answer) == ("Which?", "cross")
    assert simplify(rows[1]) == (None, "Which?", "star")
    assert check_images(rows)[1] == []


# Columns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "Image Path,QUESTION, Label ",
        "file_name,prompt,response",
        "picture,instruction,output",
        "imagePath,Query,Target",
    ],
)
def test_columns_are_found_by_name(header, folder):
    assert read(write(folder, f"id,{header}\n7,a.png,Which?,star\n")) == [("a.png", "Which?", "star")]


def test_columns_can_be_named(folder):
    path = write(folder, "image,answer,what,label\na.png,x,Which?,star\n")
    columns = Columns(question="What", answer="label")
    assert read(path, columns=columns) == [("a.png", "Which?", "star")]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            "image,text,answer",
            {},
            "no column of questions. Its columns .*'image', 'text', 'answer'.*--question-column",
        ),
        ("image,text,answer", {}, "one question for all rows: --question TEXT"),
        ("image,question,text", {}, "no column of answers.*--answer-column NAME"),
        ("a.png,Which?,star", {}, r"no column of questions. Its columns \(the first row names them\)"),
        ("image,question,answer,label", {}, "several columns.*answer: 'answer', 'label'.*--answer-column 'answer'"),
        ("image,question,Answer,answer", {}, "several columns that may hold the answer: 'Answer', 'answer'"),
        ("image,question,answer,answer", {}, "has the column 'answer' twice"),
        ("image,file_name,question,answer", {}, "several columns.*image: 'image', 'file_name'"),
        ("image,question,answer", {"columns": Columns(image="photo")}, "no column 'photo' .--image-column.*'image'"),
        ("image,question,answer", {"columns": Columns(answer="question")}, "'question' is both question and answer"),
        ("image,question,answer", {"columns": Columns(question="image")}, "'image' is both image and question"),
        ("image,question,answer", {"columns": Columns(question="a"), "question": "b"}, "give one of them"),
        (",".join(map(str, range(50))), {}, "'18', '19' and 30 more"),
    ],
)
def test_columns_that_do_not_fit_are_listed(header, options, message, folder):
    count = header.count(",") + 1
    with pytest.raises(ValueError, match=message):
        read_rows(write(folder, header + "\n" + ",".join(["x"] * count) + "\n"), **options)


# Cells --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (2.5, "2.5"), (True, "True"), ("1,5", "1,5"), (["one"], "one"), ("NA", "NA"), (0, "0")],
)
def test_answers_become_text(value, text, folder):
    path = write(folder, json.dumps([{"question": "Which?", "answer": value}]), "table.json")
    assert read(path) == [(None, "Which?", text)]


def test_whole_numbers_of_a_column_with_gaps_stay_whole(folder):
    frame = pandas.DataFrame({"image": ["a.png", "b.png"], "question": "How many?", "answer": [3, None]})
    frame.to_parquet(folder / "table.parquet")
    rows, problems, _ = read_rows(folder / "table.parquet")
    assert simplify(rows[0]) == ("a.png", "How many?", "3")
    assert str(problems[0]) == "row 2: the answer is empty"


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan"), {"bytes": None, "path": None}, []])
def test_rows_without_image_are_text(missing, folder):
    path = write(folder, json.dumps([{"image": missing, "question": "Which?", "answer": "x"}]), "table.json")
    assert read(path) == [(None, "Which?", "x")]


@pytest.mark.parametrize(
    "name", ["sub dir/c.png", "sub dir\\c.png", ".\\sub dir\\c.png", "{folder}/sub dir/c.png", "~/sub dir/c.png"]
)
def test_images_are_found(name, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    path = write(folder, f"image,question,answer\n{name.format(folder=folder)},Which?,x\n")
    assert read(path) == [("c.png", "Which?", "x")]
    rows, _, _ = read_rows(path)
    assert check_images(rows)[1] == []


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_images_are_found_in_both_forms_of_unicode(form, folder):
    (folder / "a.png").rename(folder / unicodedata.normalize("NFD" if form == "NFC" else "NFC", "größe.png"))
    path = write(folder, unicodedata.normalize(form, "image,question,answer\ngröße.png,Which?,x\n"))
    assert check_images(read_rows(path)[0])[1] == []


def test_image_folder_is_where_paths_begin(folder):
    path = write(folder, "image,question,answer\nc.png,Which?,x\n")
    assert read(path, image_folder=folder / "sub dir") == [("c.png", "Which?", "x")]


def test_images_may_be_base64(folder):
    Image.effect_noise((40, 40), 50).save(folder / "noise.png")
    text = base64.b64encode((folder / "noise.png").read_bytes()).decode()
    for value in (text, f"data:image/png;base64,{text}"):
        rows, problems, _ = read_rows(write(folder, f'image,question,answer\n"{value}",Which?,x\n'))
        assert not problems and check_images(rows)[1] == []


def test_image_mark_in_a_question_is_where_the_image_stands(folder):
    assert read(write(folder, "image,question,answer\na.png,<image> Which?,x\n")) == [("a.png", "Which?", "x")]
    assert "has a place for an image" in find_problem(write(folder, "image,question,answer\n,<image> Which?,x\n"))


def test_chat_rows_are_taken_as_they_are(folder):
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "x"}]
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "x"}]
    rows = [
        {"id": "1", "image": "a.png", "conversations": turns},
        {"images": ["a.png"], "messages": messages},
        {"image": "a.png", "question": "Which?", "answer": "x"},
    ]
    expected = ("a.png", "Which?", "x")
    assert read(write(folder, json.dumps(rows[:1]), "table.json")) == [expected]
    assert read(write(folder, json.dumps(rows), "table.json")) == [expected] * 3
    assert read(write(folder, "\n".join(map(json.dumps, rows)), "table.jsonl")) == [expected] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,Which?", "line 2: it has 2 fields, expected 3 (image, question, answer)"),
        ("a.png,Which, then?,x", "it has 4 fields, expected 3 (image, question, answer); a text with commas has to"),
        ("a.png,,x", "line 2: the question is empty"),
        ("a.png,Which?,", "line 2: the answer is empty"),
        ("d.png,Which?,x", "line 2: image 'd.png': there is no such file"),
        ("A.PNG,Which?,x", "line 2: image 'A.PNG': there is no such file, but 'a.png'"),
        ("a,Which?,x", "line 2: image 'a': there is no such file, but 'a.png'"),
        ("sub dir,Which?,x", "line 2: image 'sub dir': it is a folder"),
        ("https://a.org/a.png,Which?,x", "line 2: the image is an address"),
        ("a.png,Which?,<image>", "holds <image>, expected it in a question"),
    ],
)
def test_bad_rows_of_csv_say_where_and_why(row, message, folder):
    assert message in find_problem(write(folder, f"image,question,answer\n{row}\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'image': 1}", "line 2: not valid JSON: Expecting property name"),
        ('["a.png", "Which?"]', "line 2: the row is \"['a.png', 'Which?']\", expected an object with keys"),
        ('{"question": "Which?", "answer": ["a", "b"]}', "the answer is \"['a', 'b']\", expected a text or a number"),
        ('{"question": {"a": 1}, "answer": "b"}', "line 2: the question is"),
        ('{"question": "Which?"}', "line 2: the answer is empty"),
        ('{"image": ["a.png", "b.png"], "question": "a", "answer": "b"}', "The row has 2 images, expected at most 1"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "expected a question and an answer at the end"),
        ('{"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "b"}]}', "role user is empty"),
    ],
)  # fmt: skip
def test_bad_rows_of_json_say_where_and_why(line, message, folder):
    path = write(folder, '{"question": "Which?", "answer": "x"}\n' + line + "\n", "table.jsonl")
    assert message in find_problem(path)


def test_broken_images_are_found_and_equal_ones_recognized(folder):
    write(folder, (folder / "a.png").read_bytes()[:45], "cut.png")
    write(folder, b"hello", "text.png")
    write(folder, (folder / "a.png").read_bytes(), "copy.png")
    names = ["a.png", "cut.png", "copy.png", "text.png", "b.png", ""]
    path = write(folder, "image,question,answer\n" + "".join(f"{name},Which?,x\n" for name in names))
    rows, _, _ = read_rows(path)
    fingerprints, problems = check_images(rows)
    assert [problem.place for problem in problems] == ["line 3", "line 5"]
    assert "cut.png" in problems[0].reason and "text.png" in problems[1].reason
    assert fingerprints[0] == fingerprints[2] != fingerprints[4]
    assert fingerprints[5] is None


def test_bad_rows_are_counted_and_each_kind_is_shown():
    problems = [RowProblem(f"line {index}", "the answer is empty") for index in range(2, 40)]
    problems.append(RowProblem("line 99", "image 'x.png': there is no such file"))
    lines = str(BadRowsError("table.csv", problems, 500)).split("\n")
    assert lines[0] == "table.csv: 39 of 500 rows cannot be used:"
    assert lines[1] == "  line 2: the answer is empty"
    assert lines[-2] == "  line 99: image 'x.png': there is no such file"
    assert lines[-1] == "  and 33 more"


# Split --------------------------------------------------------------------------------------------------------------


def make_rows(count: int) -> list[dict]:
    return [{"messages": [f"row {index}"], "source": f"line {index}"} for index in range(count)]


def test_split_keeps_an_image_on_one_side_and_depends_on_the_seed():
    rows = make_rows(60)
    fingerprints = [f"image {index // 3}" for index in range(57)] + [None] * 3
    train, held_out = split_rows(rows, fingerprints, 0.2, seed=0)
    assert len(train) + len(held_out) == 60 and 12 <= len(held_out) <= 14
    images = {row["source"]: key or row["source"] for row, key in zip(rows, fingerprints, strict=True)}
    assert not {images[row["source"]] for row in train} & {images[row["source"]] for row in held_out}
    assert split_rows(rows, fingerprints, 0.2, seed=0) == (train, held_out)
    assert split_rows(rows, fingerprints, 0.2, seed=1) != (train, held_out)
    shuffled = split_rows(rows[::-1], fingerprints[::-1], 0.2, seed=0)[1]
    assert shuffled == held_out[::-1], "the order of the table changes nothing"


def test_split_of_few_rows():
    rows = make_rows(3)
    assert [len(part) for part in split_rows(rows, ["a", "b", "c"], 0.2, 0)] == [2, 1]
    assert [len(part) for part in split_rows(rows, ["a", "b", "c"], 0.9, 0)] == [1, 2]
    assert split_rows(rows[:1], ["a"], 0, 0) == (rows[:1], [])
    with pytest.raises(ValueError, match="is one row: none can be held out.*--eval-data.*--eval-share 0"):
        split_rows(rows[:1], ["a"], 0.2, 0)
    with pytest.raises(ValueError, match="are 3 rows about one image"):
        split_rows(rows, ["a"] * 3, 0.2, 0)
    with pytest.raises(ValueError, match="is 1.5, expected 0 or more"):
        split_rows(rows, ["a"] * 3, 1.5, 0)


def test_share_held_out_by_default():
    assert [default_share(count) * count for count in (50, 500, 50_000)] == [10, 50, 1000]
