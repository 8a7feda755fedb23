"""The table of columns and the report, without lmms-eval."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fusion_vlm.evaluation.columns import (
    AUTHORS_RESULTS,
    BENCHMARKS,
    build_column,
    choose_columns,
    make_columns,
    read_authors_scores,
    read_columns,
)
from fusion_vlm.evaluation.report import describe_run, find_interval, make_rows, print_report, wilson

from ..helpers import ROOT


COLUMNS = read_columns()
FINISHED = "2026-11-29T12:00:00+00:00"
SETTINGS = {"dtype": "float16", "latent_grid_size": 8, "draw_latents": None, "quantization": None}


def make_record(column, value, *, num_questions=100, num_all=100, **more) -> dict:
    """Return what run.py writes about a task."""
    return {
        "values": {column.key: value, **more},
        "counts": {column.metric: num_questions},
        "right_or_wrong": [],
        "num_questions": num_questions,
        "num_all": num_all,
        "judge": None,
        "data": "owner/data",
        "config": {"test_split": "test"},
        "finished": FINISHED,
    }


def report(columns, records, failures=None, authors="FUSION-Phi3.5-3B", left_out=()) -> str:
    rows = make_rows(columns, records, failures or {}, read_authors_scores(authors))
    notes = describe_run(SETTINGS, None, "0.7.3", authors is not None)
    return print_report(rows, model="out/mine", authors=authors, notes=notes, left_out=left_out)


# Columns ------------------------------------------------------------------------------------------------------------


def test_columns_are_those_of_the_authors_table():
    benchmarks = yaml.safe_load(AUTHORS_RESULTS.read_text(encoding="utf-8"))["benchmarks"]
    assert list(COLUMNS) == [benchmark["key"] for benchmark in benchmarks]
    for scores in yaml.safe_load(AUTHORS_RESULTS.read_text(encoding="utf-8"))["scores"].values():
        assert scores.keys() == COLUMNS.keys()


def test_each_task_of_this_package_has_a_file_that_says_why():
    files = {path.stem: path.read_text(encoding="utf-8") for path in (BENCHMARKS.parent / "tasks").glob("*.yaml")}
    named = {column.task for column in COLUMNS.values() if column.task.startswith("fusion_")}
    assert files.keys() == named
    assert len(named) == 9
    for name, text in files.items():
        assert text.startswith("# "), name
        assert yaml.safe_load(text.replace("!function ", ""))["task"] == name


def test_20_columns_need_no_judge():
    assert sorted(column.name for column in COLUMNS.values() if column.judge) == ["LLaVA_W", "MM-Vet", "MathVista"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scal": 1}, "POPE has the unknown field 'scal'"),
        ({"scale": "1"}, "the field scale of POPE is '1', expected"),
        ({"interval": "normal"}, "the interval of POPE is 'normal'"),
        ({"differs": "one"}, "the field differs of POPE is 'one'"),
        ({"judge": 1}, "the field judge of POPE is 1"),
        ({"task": None}, "the field task of POPE is None"),
    ],
)
def test_malformed_column_is_named(change, message):
    row = yaml.safe_load(BENCHMARKS.read_text(encoding="utf-8"))["POPE"]
    with pytest.raises(ValueError, match=message):
        build_column("POPE", {**row, **change}, BENCHMARKS)
    del row["metric"]
    with pytest.raises(ValueError, match="POPE lacks metric"):
        build_column("POPE", row, BENCHMARKS)


def test_names_are_found_however_they_are_spelled():
    assert [column.name for column in choose_columns(["mme-p", "pope", "MMVET"], COLUMNS)] == [
        "POPE",
        "MM-Vet",
        "MME_P",
    ]
    assert choose_columns(["all"], COLUMNS) == list(COLUMNS.values())
    with pytest.raises(ValueError, match=r"no benchmark 'texvqa'. Did you mean TextVQA\?"):
        choose_columns(["texvqa"], COLUMNS)


# Intervals ----------------------------------------------------------------------------------------------------------


def test_wilson_is_that_of_the_literature():
    # Newcombe (1998), table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_interval_is_in_the_unit_of_the_table():
    pope = COLUMNS["POPE"]
    interval = find_interval(80.0, pope, make_record(pope, 0.8, num_questions=10))
    assert (interval.low, interval.high) == pytest.approx((49.0, 94.3), abs=0.1)
    math = COLUMNS["MathVista"]  # in percent already
    assert find_interval(80.0, math, make_record(math, 80.0, num_questions=10)) == interval
    text = COLUMNS["TextVQA"]
    record = make_record(text, 0.7, **{"exact_match_stderr,none": 0.05})
    interval = find_interval(70.0, text, record)
    assert (interval.low, interval.high, interval.kind) == (pytest.approx(60.2), pytest.approx(79.8), "stderr")
    assert find_interval(1500.0, COLUMNS["MME_P"], make_record(COLUMNS["MME_P"], 1500.0)) is None


# The report ---------------------------------------------------------------------------------------------------------


def test_report_has_the_difference_and_what_differs():
    pope = COLUMNS["POPE"]
    text = report([pope], {"pope": make_record(pope, 0.869, **{"pope_f1_score,none": 0.86})})
    assert "column  ours  authors'  difference  questions  task" in text
    assert "POPE    86.9  88.9      -2.0        100        pope" in text
    assert "whether theirs is accuracy or F1 is not said" in text
    assert "(pope_f1_score 86.0)" in text
    assert (
        "latents: 8x8 for each question; the authors draw that side for each question from 2, 4, 6, 8 and 12" in text
    )
    assert "dtype: float16\n" in text


def test_each_column_has_a_note_below_the_table():
    records = {column.task: make_record(column, 50 / column.scale) for column in COLUMNS.values()}
    records["mme"]["values"][COLUMNS["MME_P"].key] = 50
    text = report(list(COLUMNS.values()), records)
    for name, column in COLUMNS.items():
        notes = text.split(f"\n  {name}: metric {column.metric}", 1)[1]
        assert notes.splitlines()[1].startswith("    "), name


def test_what_is_not_comparable_has_no_difference():
    vet, mme = COLUMNS["MM-Vet"], COLUMNS["MME_P"]
    judged = make_record(vet, 55.0) | {"judge": {"url": "http://127.0.0.1/v1", "model": "mine", "calls": 1}}
    partial = make_record(mme, 300.0, num_questions=100, num_all=2374)
    text = report([vet, mme], {"fusion_mmvet": judged, "mme": partial})
    assert "MM-Vet  55.0                 57.2      not comparable  100" in text
    assert "MME_P   300.0 (no interval)  1595.9    not comparable  100 of 2374" in text
    assert "graded by mine at http://127.0.0.1/v1" in text
    assert "a sum over the kinds of questions that are among the first rows" in text


def test_another_model_has_no_column_of_the_authors():
    pope = COLUMNS["POPE"]
    text = report([pope], {"pope": make_record(pope, 0.9)}, authors=None, left_out=["MM-Vet"])
    assert "authors" not in text.replace("the authors'", "")
    assert "column  ours  questions  task" in text
    assert "Left out, because a language model grades them (--judge): MM-Vet." in text


def test_column_without_a_value_says_why():
    pope, math = COLUMNS["POPE"], COLUMNS["MathVista"]
    partial = make_record(COLUMNS["MME_C"], 100.0, num_questions=4, num_all=2374)
    rows = make_rows([pope, COLUMNS["MME_P"]], {"mme": partial}, {"pope": "no network"}, {})
    assert [row.problem for row in rows] == [
        "no network",
        "no question among the first 4 has the metric mme_perception_score",
    ]
    # lmms-eval gives no value where no answer is right.
    (row,) = make_rows([math], {math.task: make_record(math, None)}, {}, {})
    assert (row.value, row.problem) == (0, None)


def test_task_of_ones_own_has_a_row_for_each_metric():
    (column,) = make_columns(["mine", "mine"])
    values = {"a,none": 0.5, "a_stderr,none": 0.1, "b,loose": 0.25, "b_stderr,loose": "N/A", "alias": "mine"}
    record = make_record(replace(column, metric="a"), 0.5, num_questions=4, num_all=8) | {
        "values": values,
        "counts": {"a": 4, "b": 4},
        "right_or_wrong": ["a"],
    }
    rows = make_rows([column], {"mine": record}, {}, read_authors_scores("FUSION-Phi3.5-3B"))
    assert [(row.name, row.value, row.split) for row in rows] == [
        ("mine a", 0.5, "test"),
        ("mine b (loose)", 0.25, "test"),
    ]
    assert rows[0].interval.kind == "wilson"
    assert rows[1].interval is None
    assert all(row.authors is None and row.difference is None for row in rows)


def test_settings_of_the_run_are_told():
    drawn = {"dtype": "bfloat16", "latent_grid_size": [2, 4], "draw_latents": 3, "quantization": "nf4"}
    text = "\n".join(describe_run(drawn, 50, "0.8.0", True))
    assert "latents: the side of the grid is drawn from 2, 4 with the seed 3" in text
    assert "dtype: bfloat16; the authors: float16" in text
    assert "weights: in 4 bits (nf4); the authors' are not" in text
    assert "harness: lmms-eval 0.8.0; the table of columns was written for 0.7.3" in text
    assert "questions: at most the first 50 of each task" in text


def test_documents_of_the_tests_cover_each_column():
    documents = json.loads((Path(__file__).parents[1] / "fixtures" / "benchmarks.json").read_text(encoding="utf-8"))
    assert documents.keys() | {"MME_C"} == COLUMNS.keys()


def test_page_has_the_columns_of_the_file():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for column in COLUMNS.values():
        judge = " yes " if column.judge else " "
        row = f"| {column.name} | `{column.task}` {column.metric} | {column.split} |{judge}|"
        assert row in page, row
