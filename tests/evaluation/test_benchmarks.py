"""Each column of the paper's table, scored by lmms-eval on made-up documents in the format of its benchmark."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


pytest.importorskip("lmms_eval", reason="needs lmms-eval: make test-eval")

from lmms_eval.api.model import lmms

from fusion_vlm.evaluation.columns import read_columns
from fusion_vlm.evaluation.harness import TaskError, check_task, find_tasks, identify_task, run_task
from fusion_vlm.evaluation.judge import Judge, JudgeError, check_judge, check_judged, use_judge
from fusion_vlm.evaluation.run import Plan

from .local_tasks import BENCHMARKS, local_data


COLUMNS = read_columns()
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


class Reciter(lmms):
    """A model that gives the answers it was made with, and keeps the prompts."""

    is_simple = True

    def __init__(self, answers: list[str]):
        super().__init__()
        self.answers, self.prompts, self.options = answers, [], []

    def generate_until(self, requests):
        self.prompts += [request.args[0] for request in requests]
        self.options += [request.args[1] for request in requests]
        return [self.answers[request.args[3]] for request in requests]

    def generate_until_multi_round(self, requests):
        raise NotImplementedError

    def loglikelihood(self, requests):
        raise NotImplementedError


class JudgeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server whose model says `reply`, or fails where that is None."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.reply, self.asked = "yes", []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class JudgeHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, request))
        reply = self.server.reply
        message = {"role": "assistant", "content": reply}
        content = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
        content |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        self.send_response(400 if reply is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content if reply is not None else {"error": {"message": "broken"}}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def judge(server):
    """Return the judge of all tasks, made before any of them is loaded, and the record of its calls."""
    judge = Judge(server.url, "small-judge")
    return judge, use_judge(judge)


@pytest.fixture(scope="module")
def manager(judge):
    return find_tasks()


def recite(manager, name: str, answers: list[str], tmp_path, *, limit=None, judge=None):
    """Score answers to the made-up documents of a column."""
    column = COLUMNS[name]
    data = local_data("MME_P" if name == "MME_C" else name, column.split, tmp_path / "documents.parquet")
    task = manager.load_config({"task": column.task, **data})[column.task]
    lm = Reciter(answers)

    def check(samples):
        if judge:
            check_judged(judge[1], judge[0], samples)

    if judge:
        judge[1].clear()
    result = run_task(lm, task, manager, limit=limit, scratch=tmp_path / "scratch", check=check)
    return result, lm


@pytest.mark.parametrize("name", COLUMNS)
def test_column_has_its_task_and_its_metric(manager, judge, server, name, tmp_path):
    server.reply = {"MM-Vet": "1.0", "LLaVA_W": "8 8"}.get(name, "2")
    check_task(manager, COLUMNS[name].task)
    assert identify_task(manager, COLUMNS[name].task) == identify_task(manager, COLUMNS[name].task)
    documents = BENCHMARKS["MME_P" if name == "MME_C" else name]
    result, _ = recite(manager, name, documents["right"], tmp_path)
    value = result.values[COLUMNS[name].key] * COLUMNS[name].scale
    assert value == pytest.approx(100.0 if documents["value"] is None else documents["value"])
    assert all(isinstance(result.values[f"{metric},{COLUMNS[name].filter}"], float) for metric in COLUMNS[name].also)
    assert result.num_questions == result.num_all == len(documents["right"])


@pytest.mark.parametrize("name", [name for name in COLUMNS if not COLUMNS[name].judge])
def test_column_tells_wrong_answers_from_right_ones(manager, name, tmp_path):
    documents = BENCHMARKS["MME_P" if name == "MME_C" else name]
    result, _ = recite(manager, name, documents["wrong"], tmp_path)
    assert result.values[COLUMNS[name].key] * COLUMNS[name].scale == pytest.approx(documents["wrong_value"])


# Tasks of ours -----------------------------------------------------------------------------------------------------


def test_seed_asks_about_images_only(manager, tmp_path):
    result, lm = recite(manager, "Seed-Image", ["A", "C"], tmp_path)
    assert len(lm.prompts) == 2
    assert result.num_all == 2
    assert lm.prompts[0].startswith("How many shapes")


def test_cv_bench_has_the_prompt_and_the_mean_of_the_authors(manager, tmp_path):
    # ADE20K 1 of 2, COCO 0 of 1, Omni3D 1 of 1: ((0.5 + 0) / 2 + 1) / 2, where the plain mean is 0.5.
    result, lm = recite(manager, "CV-Bench", ["A", "B", "B", "A"], tmp_path)
    assert result.values["cv_bench_acc,none"] == pytest.approx(0.625)
    question = "How many shapes are in the image? Select from the following choices.\n(A) 3\n(B) 2"
    assert lm.prompts[0] == question + SUFFIX


def test_cv_bench_with_a_limit_averages_the_sources_that_are_left(manager, tmp_path):
    result, _ = recite(manager, "CV-Bench", ["A", "B", "B", "A"], tmp_path, limit=2)
    assert result.values["cv_bench_acc,none"] == pytest.approx(0.5)


def test_mmvp_scores_questions_and_has_the_options_in_their_line(manager, tmp_path):
    result, lm = recite(manager, "MMVP", ["A", "A"], tmp_path)
    assert result.values["mmvp_accuracy,none"] == 0.5
    assert result.values["mmvp_pair_accuracy,none"] == 0.0
    assert lm.prompts[0] == f"Is the circle on the left or on the right? (a) Left (b) Right{SUFFIX}"
    assert lm.options[0]["max_new_tokens"] == 1024


def test_mmmu_takes_the_first_image_and_2048_tokens(manager, tmp_path):
    _, lm = recite(manager, "MMMU", ["B", "12"], tmp_path)
    assert lm.prompts[0].startswith("<image 1> and <image 2>: which color?\nA. red")
    assert (lm.options[0]["many_images"], lm.options[0]["max_new_tokens"]) == ("first", 2048)


@pytest.mark.parametrize(
    "answer, score",
    [("No.", 1), ("no, it is a circle", 1), ("", 0), ("Yes and no", 0), ("Nothing", 0), ("The eyes show no star", 1)],
)
def test_hallusion_reads_whole_words(manager, tmp_path, answer, score):
    result, _ = recite(manager, "HallB", ["yes", "no", answer], tmp_path)
    assert result.values["aAcc,none"] == pytest.approx((2 + score) / 3)


def test_hallusion_counts_questions_and_figures_that_are_right_throughout(manager, tmp_path):
    # Figure 0 has questions 0 and 1, figure 1 has question 0, which alone is wrong.
    result, _ = recite(manager, "HallB", ["yes", "no", "yes"], tmp_path)
    assert result.values["aAcc,none"] == pytest.approx(2 / 3)
    assert result.values["qAcc,none"] == result.values["fAcc,none"] == pytest.approx(1 / 2)
    assert result.values["average,none"] == pytest.approx(5 / 9)


def test_mmbench_cn_wants_each_rotation_right(manager, tmp_path):
    result, lm = recite(manager, "MMB_CN", ["A", "A", "B"], tmp_path)
    assert result.values["accuracy,none"] == pytest.approx(0.5)
    assert lm.prompts[0].endswith("D. 灰色\n\n请直接使用所提供的选项字母作为答案回答。")


def test_textvqa_has_the_ocr_tokens_in_the_prompt(manager, tmp_path):
    _, lm = recite(manager, "TextVQA", ["stop"], tmp_path)
    assert "\nReference OCR token: STOP, ahead\nAnswer the question using a single word or phrase." in lm.prompts[0]


def test_ocrbench_is_the_same_in_a_second_run(manager, tmp_path):
    for _ in range(2):
        result, _ = recite(manager, "OCRBench", ["centre", "nothing"], tmp_path)
        assert result.values["ocrbench_accuracy,none"] == 0.5


def test_mmvet_is_greedy(manager, judge, server, tmp_path):
    server.reply = "0.5"
    result, lm = recite(manager, "MM-Vet", ["1"], tmp_path, judge=judge)
    assert result.values["gpt_eval_score,none"] == 50.0
    assert (lm.options[0]["temperature"], lm.options[0]["do_sample"]) == (0, False)


# Judges -------------------------------------------------------------------------------------------------------------


def test_judge_is_asked_by_its_name_at_the_endpoint(manager, judge, server, tmp_path):
    server.reply, server.asked = "0.5", []
    recite(manager, "MM-Vet", ["1"], tmp_path, judge=judge)
    assert [(path, request["model"]) for path, request in server.asked] == [("/v1/chat/completions", "small-judge")]
    assert judge[1].num_calls == 1


@pytest.mark.parametrize("reply", ["good", "7", "1.5", ""])
def test_mmvet_without_a_grade_from_0_to_1_has_no_result(manager, judge, server, tmp_path, reply):
    """lmms-eval asks for ever where the reply is a number above 1, and counts the others as 0."""
    server.reply = reply
    with pytest.raises(JudgeError, match=r"gave no score for 1 of 1 answers \(documents 0\)"):
        recite(manager, "MM-Vet", ["1"], tmp_path, judge=judge)


def test_llava_without_two_scores_has_no_result(manager, judge, server, tmp_path):
    """lmms-eval counts -1 for both answers, whose quotient is 1."""
    server.reply = "Both are good."
    with pytest.raises(JudgeError, match="gave no score for 3 of 3 answers"):
        recite(manager, "LLaVA_W", ["A circle."] * 3, tmp_path, judge=judge)


@pytest.mark.parametrize("name", ["MM-Vet", "LLaVA_W", "MathVista"])
def test_judge_that_fails_leaves_no_result(manager, judge, server, name, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the retries of lmms-eval
    server.reply = None
    with pytest.raises(JudgeError, match="The judge small-judge at http://127.0.0.1:.* failed: .*broken"):
        recite(manager, name, ["The answer is two."] * 3, tmp_path, judge=judge)


def test_check_of_a_judge_says_what_it_answers(server):
    server.reply = "yes"
    check_judge(Judge(server.url, "small-judge"))
    server.reply = None
    with pytest.raises(JudgeError, match="does not answer: .*broken.*OPENAI_API_KEY"):
        check_judge(Judge(server.url, "small-judge"))


# Errors -------------------------------------------------------------------------------------------------------------


def test_missing_task_names_the_nearest(manager):
    with pytest.raises(TaskError, match="has no task 'popee'. Did you mean pope"):
        check_task(manager, "popee")


def test_group_names_its_tasks(manager):
    with pytest.raises(TaskError, match="mmmu is a group of tasks. Name its tasks: mmmu_val mmmu_test"):
        check_task(manager, "mmmu")


def test_error_of_a_task_is_raised(manager, tmp_path):
    """MME's questions come in pairs; lmms-eval itself prints the error and exits with 0."""
    with pytest.raises(TaskError, match="mme: AssertionError: MME only supports pairwise evaluation"):
        recite(manager, "MME_P", ["yes"] * 4, tmp_path, limit=1)


def test_limit_does_not_split_the_pairs_of_mme(manager, tmp_path):
    plan = Plan([COLUMNS["MME_P"], COLUMNS["POPE"]], tmp_path, manager, limit=5)
    assert [plan.find_limit(columns) for columns in plan.tasks.values()] == [6, 5]
    assert Plan([COLUMNS["MME_P"]], tmp_path, manager).find_limit([COLUMNS["MME_P"]]) is None
