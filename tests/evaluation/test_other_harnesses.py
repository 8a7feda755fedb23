"""The small model in lm-eval, and through the server in lmms-eval and an OpenAI client: `make test-eval`."""

import base64
import re
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest


pytest.importorskip("lmms_eval", reason="needs lmms-eval: make test-eval")
pytest.importorskip("lm_eval", reason="needs lm-eval: make test-eval")

import lm_eval
import lm_eval.tasks
import lmms_eval.evaluator
import lmms_eval.models
import lmms_eval.tasks

from fusion_vlm.evaluation.answering import Answerer, Request
from fusion_vlm.hub.loading import load
from fusion_vlm.processing_fusion import FusionProcessor

from ..helpers import SMALL_MODEL
from .easy_tasks import read_easy_rows, write_lm_tasks, write_lmms_tasks


NUMBER = 100


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_easy_rows(NUMBER)


@pytest.fixture(scope="module")
def answers(rows) -> list[str]:
    """Return the answers that the plugin of lmms-eval gives, which test_lmms_model.py compares with direct ones."""
    requests = [
        Request({"row": index}, [row["question"]], lambda row=row: row["images"], {"max_new_tokens": 6})
        for index, row in enumerate(rows)
    ]
    return Answerer(*load(SMALL_MODEL, device="cpu")).answer(requests)


# lm-eval ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluate(rows, tmp_path_factory):
    """Run a task of lm-eval, as its command does; return the accuracy and the answers."""
    folder = tmp_path_factory.mktemp("lm_tasks")
    write_lm_tasks(folder, rows)
    manager = lm_eval.tasks.TaskManager(include_path=str(folder))

    def run(task: str, **options) -> tuple[float, list[str]]:
        result = lm_eval.simple_evaluate(
            model="hf-multimodal",
            model_args=f"pretrained={SMALL_MODEL},trust_remote_code=True",
            tasks=[task],
            device="cpu",
            task_manager=manager,
            bootstrap_iters=0,
            **options,
        )
        samples = sorted(result["samples"][task], key=lambda row: row["doc_id"])
        return result["results"][task]["exact_match,none"], [row["filtered_resps"][0] for row in samples]

    return run


def test_lm_eval_gives_the_same_answers_with_the_chat_template(evaluate, answers):
    assert evaluate("easy_lm", batch_size=8, apply_chat_template=True) == (1, answers)


def test_lm_eval_without_the_chat_template_stops_and_says_what_to_do(evaluate):
    with pytest.raises(ValueError, match="has an <image> but no <latent>.*lm-eval: --apply_chat_template"):
        evaluate("easy_lm", batch_size=8, limit=8)


def test_lm_eval_without_images_in_the_task_stops_and_says_what_is_missing(evaluate):
    """Such a task goes to the tokenizer alone. Answers with one latent instead of 16 were others, without an error."""
    with pytest.raises(ValueError, match="the placeholders were not expanded. Make the inputs with the processor"):
        evaluate("easy_blind", batch_size=8, apply_chat_template=True, limit=8)


def test_texts_around_an_image_are_joined_with_a_space(evaluate, monkeypatch):
    """The templates of other models join them without one, as in `Look atand answer`."""
    questions, read_question = [], FusionProcessor.read_question
    modules = [module for name, module in sys.modules.items() if name.endswith(".processing_fusion")]
    for module in modules:  # that of the folder too, which lm-eval runs
        monkeypatch.setattr(
            module.FusionProcessor,
            "read_question",
            lambda self, prompt: questions.append(read_question(self, prompt)) or questions[-1],
        )
    evaluate("easy_parts", batch_size=8, apply_chat_template=True, limit=2)
    assert questions and all(question.startswith("Look: ") for question in questions)


# The server ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Run `fusion-vlm serve`; return its address."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "serve", str(SMALL_MODEL), "--port", "0"]
    with open(log, "w") as file, subprocess.Popen([*command, "--name", "small"], stderr=file, stdout=file) as process:
        try:
            while not (found := re.search(r"http://\S+/v1", Path(log).read_text())):
                assert process.poll() is None, Path(log).read_text()
                time.sleep(0.2)
            yield found.group()
        finally:
            process.terminate()


def test_client_of_openai_gives_the_same_answers(address, rows, answers):
    """As VLMEvalKit asks: the image as a data URI, then the question, at temperature 0."""
    client, said = openai.OpenAI(base_url=address, api_key="none"), []
    for row in rows:
        uri = "data:image/png;base64," + base64.b64encode(Path(row["images"][0]).read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": row["question"]}]
        messages = [{"role": "user", "content": content}]
        response = client.chat.completions.create(model="small", messages=messages, max_tokens=6, temperature=0)
        said.append(response.choices[0].message.content)
    assert said == answers == [row["answer"] for row in rows]


def test_lmms_eval_through_the_server_gives_the_same_answers(address, answers, tmp_path):
    write_lmms_tasks(tmp_path, NUMBER)
    manager = lmms_eval.tasks.TaskManager("ERROR", include_path=str(tmp_path))
    arguments = f"model=small,base_url={address},api_key=none,timeout=600,num_concurrent=1"
    lm = lmms_eval.models.get_model("openai", True).create_from_arg_string(arguments, {"batch_size": 1})
    result = lmms_eval.evaluator.simple_evaluate(
        model=lm,
        tasks=["easy_plain"],
        task_manager=manager,
        bootstrap_iters=0,
        verbosity="ERROR",
        gen_kwargs="temperature=0",  # the wrapper sends the task's temperature, whatever `do_sample` says
    )
    samples = sorted(result["samples"]["easy_plain"], key=lambda row: row["doc_id"])
    assert [row["filtered_resps"][0] for row in samples] == answers
    assert result["results"]["easy_plain"]["exact_match,none"] == 1
