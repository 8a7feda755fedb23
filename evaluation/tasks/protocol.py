"""
Prompts, filters and scores of the tasks in this folder, where those of lmms-eval differ from what the authors ran.

lmms-eval loads this file by its path, once for each function that a task names. What a task takes from lmms-eval
unchanged, the task's own file names.
"""

import os
import re
from collections import defaultdict

from lmms_eval.llm_judge import Request, ServerConfig, get_server


OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
JUDGE_TEMPERATURES = (0.0, 0.5, 1.0)  # tried in this order until a reply of the judge is a score


# SEED-Bench ---------------------------------------------------------------------------------------------------------


def keep_images(dataset):
    """Return the rows of SEED-Bench about an image; the others are about videos, and have eight frames."""
    return dataset.filter(lambda kind: kind == "image", input_columns=["data_type"])


# CV-Bench -----------------------------------------------------------------------------------------------------------


def prompt_cv_bench(doc, lmms_eval_specific_kwargs=None):
    """Return the question with its options, as the data set prints them, and the authors' suffix."""
    return f"{doc['prompt']}{OPTION_LETTER}"


def average_cv_bench(results):
    """
    Return CV-Bench's score: the mean of 2D and 3D, where 2D is the mean of its two sources.

    Sources that a limit cut off are skipped.
    """
    right = defaultdict(list)
    for result in results:
        right[result["source"]].append(result["is_correct"])
    if unknown := right.keys() - {"ADE20K", "COCO", "Omni3D"}:
        raise ValueError(f"CV-Bench has the unknown source {sorted(unknown)[0]!r}.")
    accuracy = {source: sum(values) / len(values) for source, values in right.items()}
    flat = [accuracy[source] for source in ("ADE20K", "COCO") if source in accuracy]
    parts = [sum(flat) / len(flat)] if flat else []
    parts += [accuracy["Omni3D"]] if "Omni3D" in accuracy else []
    return sum(parts) / len(parts)


# MMVP ---------------------------------------------------------------------------------------------------------------


def prompt_mmvp(doc, lmms_eval_specific_kwargs=None):
    """Return the question and its options in one line, as in MMVP's Questions.jsonl, and the authors' suffix."""
    return f"{doc['Question']} {doc['Options']}{OPTION_LETTER}"


# HallusionBench -----------------------------------------------------------------------------------------------------


def score_yes_no(doc, results):
    """Score an answer by its words: right if it has the expected one of "yes" and "no", and not the other."""
    words = {"yes", "no"} & set(re.findall(r"[a-z]+", results[0].lower()))
    expected = {"0": "no", "1": "yes"}[str(doc["gt_answer"])]
    row = {key: str(doc[key]) for key in ("category", "subcategory", "set_id", "figure_id", "question_id")}
    row |= {"expected": expected, "answer": results[0], "score": float(words == {expected})}
    return dict.fromkeys(("aAcc", "qAcc", "fAcc", "average"), row)


def share_of_right_groups(results, *keys):
    """Return the share of groups, rows equal in `keys`, in which every answer is right."""
    groups = defaultdict(list)
    for result in results:
        groups[tuple(result[key] for key in ("category", "subcategory", "set_id", *keys))].append(result["score"])
    return sum(min(scores) for scores in groups.values()) / len(groups)


def average_answers(results):
    """Return HallusionBench's aAcc: the share of right answers."""
    return sum(result["score"] for result in results) / len(results)


def average_questions(results):
    """Return HallusionBench's qAcc: the share of questions answered rightly about each of their figures."""
    return share_of_right_groups(results, "question_id")


def average_figures(results):
    """Return HallusionBench's fAcc: the share of figures about which every question is answered rightly."""
    return share_of_right_groups(results, "figure_id")


def average_three(results):
    """Return the mean of aAcc, qAcc and fAcc."""
    return (average_answers(results) + average_questions(results) + average_figures(results)) / 3


# MMBench ------------------------------------------------------------------------------------------------------------


def score_mmbench_cn(doc, results):
    """Return what MMBench's evaluator needs of a question and its answer."""
    from lmms_eval.tasks.mmbench import cn_utils

    return {"accuracy": cn_utils.mmbench_process_results(doc, results)["gpt_eval_score"]}


def average_mmbench_cn(results):
    """Return the share of questions answered rightly with all rotations of their options, read by rule."""
    from lmms_eval.tasks.mmbench import cn_utils

    return float(cn_utils.mmbench_evaluator.eval_result(results, eval_method="static")[0])


# OCRBench -----------------------------------------------------------------------------------------------------------


def average_ocrbench(results):
    """Return the share of right answers of those that were given."""
    return sum(result["score"] for result in results) / len(results)


# MM-Vet -------------------------------------------------------------------------------------------------------------


def grade_mmvet(doc, results):
    """
    Let the judge grade an answer from 0 to 1, with lmms-eval's prompt.

    The judge is asked once more at a higher temperature if its reply is no such number. If no reply is one, the row
    says so, and evaluation/judge.py fails the task.
    """
    from lmms_eval.tasks.mmvet.utils import MM_VET_PROMPT

    model = os.environ["MODEL_VERSION"]
    truth = doc["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    prompt = f"{MM_VET_PROMPT}\n{doc['question']} | {truth} | {results[0]} |"
    server = get_server(server_name="openai", config=ServerConfig(model_name=model))
    row = {"question_id": doc["question_id"], "question": doc["question"], "capabilities": doc["capability"]}
    row |= {"score": 0.0, "eval_model": model, "judge_reply": ""}
    for temperature in JUDGE_TEMPERATURES:
        config = ServerConfig(model_name=model, temperature=temperature, max_tokens=128)
        request = Request(messages=[{"role": "user", "content": prompt}], config=config)
        try:
            row["judge_reply"] = server.evaluate(request).content
        except Exception as error:  # of whatever client; evaluation/judge.py has recorded it
            row["judge_reply"] = str(error)
            break
        grade = re.match(r"\s*([01](?:\.\d+)?)(?!\S)", row["judge_reply"])
        if grade and float(grade[1]) <= 1:
            return {"gpt_eval_score": row | {"score": float(grade[1])}}
    return {"gpt_eval_score": row | {"judge_failed": True}}
