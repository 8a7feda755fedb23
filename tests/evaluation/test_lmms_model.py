"""The model `fusion_vl` in lmms-eval, on local tasks: `make test-eval`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("lmms_eval", reason="needs lmms-eval: make test-eval")

from lmms_eval import evaluator
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from fusion_vlm.evaluation.answering import UnanswerableError
from fusion_vlm.evaluation.lmms_model import FusionVL, read_batch_size, read_generation

from ..helpers import SMALL_MODEL, make_messages, process
from .easy_tasks import write_lmms_tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def documents(folder) -> dict[str, list[dict]]:
    return write_lmms_tasks(folder)


@pytest.fixture(scope="module")
def manager(folder, documents) -> TaskManager:
    return TaskManager("ERROR", include_path=str(folder))


@pytest.fixture(scope="module")
def lm() -> FusionVL:
    """Return the small model, as it loads by default."""
    return FusionVL(str(SMALL_MODEL), device="cpu", batch_size=8)


@pytest.fixture
def evaluate(manager):
    """Run tasks; return the accuracy and the answers of each."""

    def run(lm: FusionVL, *tasks: str, **options) -> dict[str, tuple[float, list]]:
        result = evaluator.simple_evaluate(
            model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **options
        )
        samples = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in result["samples"].items()}
        return {
            task: (result["results"][task]["exact_match,none"], [row["filtered_resps"][0] for row in samples[task]])
            for task in tasks
        }

    return run


def answer_directly(lm: FusionVL, rows: list[dict]) -> list[str]:
    """Ask one question after the other, as users do."""
    model, processor = lm.answerer.model, lm.answerer.processor
    answers = []
    for row in rows:
        inputs = process(processor, make_messages([row["question"]], row["images"][0]))
        output = model.generate(**inputs, do_sample=False, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(output, skip_special_tokens=True)
    return answers


def test_model_is_registered_by_its_entry_point():
    assert get_model("fusion_vl") is FusionVL


@pytest.mark.parametrize("task", ["easy_vqa", "scenes"])
def test_answers_are_right_and_the_same_in_any_batch_and_asked_directly(task, lm, documents, evaluate, monkeypatch):
    accuracy, answers = evaluate(lm, task)[task]
    assert accuracy == 1 and len(answers) == {"easy_vqa": 100, "scenes": 36}[task]
    monkeypatch.setattr(lm.answerer, "batch_size", 1)
    assert evaluate(lm, task)[task] == (1, answers)
    assert answer_directly(lm, documents[task]) == answers


def test_auto_classes_with_the_code_of_the_folder_give_the_same(lm, evaluate):
    other = FusionVL(str(SMALL_MODEL), device="cpu", batch_size=8, trust_remote_code=True)
    assert type(other.answerer.model).__module__.startswith("transformers_modules")
    assert evaluate(other, "easy_vqa", limit=16) == evaluate(lm, "easy_vqa", limit=16)
    assert other.settings["code"] == "folder" and other.settings["weights"] != lm.settings["weights"]


def test_four_bits_are_loaded_and_recorded(evaluate):
    quantized = FusionVL(str(SMALL_MODEL), device="cpu", batch_size=8, load_in_4bit=True)
    assert quantized.settings["quantization"] == "nf4" and quantized.answerer.model.is_loaded_in_4bit
    assert evaluate(quantized, "easy_vqa", limit=16)["easy_vqa"][0] >= 0.9


def test_questions_without_an_image_are_answered(lm, documents, evaluate):
    assert all(isinstance(answer, str) and answer for answer in evaluate(lm, "easy_text")["easy_text"][1])


def test_several_images_are_refused_with_the_documents(lm, evaluate, monkeypatch):
    monkeypatch.setattr(lm.answerer, "_generate_all", lambda jobs: pytest.fail("an answer was generated"))
    with pytest.raises(UnanswerableError, match=r"2 requests cannot .*\n.*task easy_bad, split test, doc_id 1, 3"):
        evaluate(lm, "easy_bad")


def test_first_of_several_images_is_taken_if_the_model_or_the_task_says_so(lm, documents, evaluate, monkeypatch):
    right = (1, [row["answer"] for row in documents["easy_two"]])
    assert evaluate(lm, "easy_first")["easy_first"] == right
    monkeypatch.setattr(lm, "many_images", "first")
    assert evaluate(lm, "easy_two")["easy_two"] == right


def test_second_round_has_the_prompt_that_the_task_makes_of_the_first_answer(lm, documents, evaluate):
    accuracy, answers = evaluate(lm, "easy_rounds")["easy_rounds"]
    shapes = {"circle", "rectangle", "triangle"}
    assert accuracy == 1 and all(len(said) == 2 and said[0] in shapes for said in answers)


def test_repeated_requests_of_greedy_answers_are_generated_once(lm, evaluate, monkeypatch):
    sizes, generate = [], lm.answerer._generate_batch
    monkeypatch.setattr(
        lm.answerer, "_generate_batch", lambda batch, *args: sizes.append(len(batch)) or generate(batch, *args)
    )
    evaluate(lm, "easy_vqa", limit=4, repeats=3)
    assert sum(sizes) == 4


def test_sampled_repeats_are_answers_of_their_own(lm, evaluate, monkeypatch, tmp_path):
    sizes, generate = [], lm.answerer._generate_batch
    monkeypatch.setattr(
        lm.answerer, "_generate_batch", lambda batch, *args: sizes.append(len(batch)) or generate(batch, *args)
    )
    evaluate(lm, "easy_vqa", limit=4, repeats=3, gen_kwargs="do_sample=True,temperature=0.5")
    assert sum(sizes) == 12


def test_multiple_choice_is_refused_with_the_reason(lm):
    arguments = ("What?", "A", list, 0, "seedbench_ppl", "test")
    metadata = {"task": "seedbench_ppl", "doc_id": 0, "repeats": 1, "split": "test"}
    request = Instance(request_type="loglikelihood", arguments=arguments, idx=0, metadata=metadata)
    with pytest.raises(NotImplementedError, match="no log-likelihoods, which seedbench_ppl asks for"):
        lm.loglikelihood([request])


@pytest.mark.parametrize(
    ("generation", "options", "stop"),
    [
        ({"until": ["\n\n"]}, {"do_sample": False, "max_new_tokens": 1024}, ()),
        ({"until": ["\n\n", "Q:"], "max_new_tokens": 5}, {"do_sample": False, "max_new_tokens": 5}, ("Q:",)),
        ({"until": "\n", "max_new_tokens": 5}, {"do_sample": False, "max_new_tokens": 5}, ("\n",)),
        ({"until": None, "max_new_tokens": 5}, {"do_sample": False, "max_new_tokens": 5}, ()),
        # MM-Vet has a temperature, and says that it is not to sample.
        (
            {"temperature": 0.2, "do_sample": False, "top_p": 1.0, "num_beams": 1, "max_new_tokens": 5},
            {"do_sample": False, "num_beams": 1, "max_new_tokens": 5},
            (),
        ),
        (
            {"temperature": 0.7, "top_p": None, "max_new_tokens": 5},
            {"do_sample": True, "temperature": 0.7, "max_new_tokens": 5},
            (),
        ),
        ({"temperature": 0, "do_sample": True, "max_new_tokens": 5}, {"do_sample": False, "max_new_tokens": 5}, ()),
        ({"image_aspect_ratio": "pad", "max_new_tokens": 5}, {"do_sample": False, "max_new_tokens": 5}, ()),
    ],
)
def test_settings_of_a_task_become_options(generation, options, stop):
    assert read_generation(generation) == (options, stop, None, set())


def test_setting_that_is_unknown_is_told():
    options, _, many_images, unknown = read_generation({"max_new_token": 5, "many_images": "first"})
    assert "max_new_token" not in options and unknown == {"max_new_token"} and many_images == "first"


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"many_images": "all"}, "many_images in generation_kwargs is 'all', expected one of refuse, first"),
        ({"num_return_sequences": 2}, "--repeats"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many', expected a whole number"),
    ],
)
def test_setting_that_cannot_be_is_refused(generation, message):
    with pytest.raises(ValueError, match=message):
        read_generation(generation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_gridsize": 4}, r"no model argument 'latent_gridsize' \(did you mean 'latent_grid_size'\?\)"),
        ({"dtype": "half"}, "dtype is 'half', expected one of auto, float16"),
        ({"many_images": "two"}, "many_images is 'two'"),
        ({"latent_grid_size": "four"}, "latent_grid_size is 'four', expected a whole number"),
        ({"latent_grid_size": 4, "draw_latents": 1}, "exclude each other"),
        ({"latent_grid_size": 20}, "latent_grid_size is 20, expected 1 to"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"device": "cuda:7"}, "no device 'cuda:7'"),
        ({"pretrained": "nowhere/at/all"}, "There is no folder nowhere/at/all"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        FusionVL(**{"pretrained": str(SMALL_MODEL), "device": "cpu", **arguments})


def test_batch_sizes_of_lmms_eval_are_read():
    assert [read_batch_size(*each) for each in ((8, None), ("8", 4), ("auto", None), ("auto:4", 16))] == [8, 4, 32, 16]


def test_settings_tell_one_run_from_another(lm):
    other = FusionVL(str(SMALL_MODEL), device="cpu", dtype="bfloat16", draw_latents=3, image_grid_size=5)
    assert lm.settings["dtype"] == "float32" and lm.settings["latent_grid_size"] == 4
    changed = {name for name in lm.settings if lm.settings[name] != other.settings[name]}
    assert changed == {"dtype", "latent_grid_size", "draw_latents", "image_grid_size"}
    assert other.settings["latent_grid_size"] == [2, 4] and other.settings["draw_latents"] == 3
    json.dumps(other.settings)


def run_processes(folder: Path, task: str, log: Path) -> subprocess.CompletedProcess:
    """Run lmms-eval in two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), "-m", "lmms_eval", "--model", "fusion_vl"]
    command += ["--model_args", f"pretrained={SMALL_MODEL},answers={log}", "--include_path", str(folder)]
    command += ["--tasks", task, "--batch_size", "4", "--limit", "11", "--output_path", str(log.parent / "results")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_processes_share_the_documents_and_write_a_log_each(folder, documents, tmp_path):
    log = tmp_path / "answers.jsonl"
    result = run_processes(folder, "easy_vqa", log)
    assert result.returncode == 0, result.stderr[-2000:]
    (scores,) = (tmp_path / "results").rglob("*results.json")
    assert json.loads(scores.read_text())["results"]["easy_vqa"]["exact_match,none"] == 1
    answered = [read_documents(tmp_path / f"answers.rank{rank}.jsonl") for rank in (0, 1)]
    # The process with fewer documents is given one again, and does not generate its answer again.
    assert [len(each) for each in answered] == [6, 5] and sorted(sum(answered, [])) == list(range(11))


def test_documents_that_stop_one_process_stop_the_other_too(folder, documents, tmp_path):
    result = run_processes(folder, "easy_bad", tmp_path / "answers.jsonl")
    assert "2 requests cannot be answered" in result.stdout + result.stderr
    assert not read_documents(tmp_path / "answers.rank0.jsonl")


def read_documents(log: Path) -> list[int]:
    """Return the documents of a log."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["doc_id"] for row in rows if "answer" in row]
