"""
Check a converted folder, from its tensors to its answers, with a report to paste into an issue.

    fusion-vlm verify out/fusion-phi3.5-3b
"""

import logging
import math
import os
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.bug_report import describe_versions
from fusion_vlm.hub.loading import nf4_config
from fusion_vlm.hub.names import find_folder, refuse_adapter
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.verification.questions import BLANK, PHOTO_QUESTION, QUESTIONS, Examiner, Score
from fusion_vlm.verification.weights import PartWeights, check_weights


CODE_FILES = ("configuration_fusion.py", "modeling_fusion.py", "processing_fusion.py", "handler.py")
PACKAGE_DIR = Path(__file__).resolve().parents[1]
LATENT_GRID_SIZES = (2, 4, 6, 8, 12)

# A healthy model answers nearly all questions; a model that ignores the picture answers one of two at best, because
# each question is asked about two pictures with different answers.
MIN_ANSWERS = 0.7
# Shares of `Examiner.measure_mapping`: 0.5 is chance. In between, the finding is a doubt.
MAPPING_LOST, MAPPING_GOOD = 0.65, 0.8
FOUR_BITS = "4 bits"
EMBEDDING = "decoder.embed_tokens"
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, FOUR_BITS: 0.75}
MEMORY_MARGIN = 1.2  # activations and buffers of the forwards, beside the weights


class Report:
    """
    The lines of the report, printed at once, and the findings that decide the verdict.

    Args:
        print_line (`Callable[[str], None]`): gets each line.
    """

    def __init__(self, print_line: Callable[[str], None]):
        self.print_line = print_line
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.doubts: dict[str, list[str]] = defaultdict(list)
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def head(self, title: str):
        self.print_line(f"\n{title} ({self.elapsed:.0f} s)")

    def fail(self, text: str):
        self.failures.append(text)

    @property
    def passed(self) -> bool:
        return not (self.faults or self.failures)


def verify(
    folder: str | os.PathLike,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
    time_limit: float = 60,
    print_line: Callable[[str], None] = print,
) -> bool:
    """
    Check a converted folder: its tensors, its answers to questions about bundled pictures, and its mappings.

    Args:
        folder (`str` or `os.PathLike`): of a converted model.
        device (`str`): such as `"cpu"` or `"cuda:1"`. Defaults to a GPU if there is one.
        trust_remote_code (`bool`): whether to load with the code of the folder, through the Auto classes.
        time_limit (`float`): seconds after which no further optional check is begun.
        print_line (`Callable[[str], None]`): gets the lines of the report.

    Returns:
        `bool`: whether all is well.

    Raises:
        ValueError, OSError: if there is no FUSION folder, or if the model cannot be loaded.
    """
    folder = Path(find_folder(folder))
    refuse_adapter(folder)
    config = FusionConfig.from_pretrained(folder)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    report = Report(print_line)
    with quiet_libraries():
        describe_setup(report, folder, config, device)
        parts = check_weights(folder)
        report_weights(report, parts)
        num_parameters = sum(part.num_parameters for part in parts)
        stored, *others = choose_precisions(report, config, num_parameters, device)
        examiner = Examiner(*load(folder, stored, device, trust_remote_code))
        answers_ok = check_answers(report, examiner, stored)
        mapping_ok = check_mapping(report, examiner)
        if answers_ok:
            check_conditions(report, examiner, config, time_limit)
        del examiner  # frees its memory for the other precisions
        if answers_ok:
            check_precisions(report, folder, others, device, trust_remote_code, time_limit)
        name_causes(report, answers_ok, mapping_ok)
        give_verdict(report, config, device)
    return report.passed


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switch off warnings and progress bars: the checks provoke warnings, and the report says what matters."""
    had_bars, level = transformers_logging.is_progress_bar_enabled(), logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def describe_setup(report: Report, folder: Path, config: FusionConfig, device: str):
    report.print_line(f"Folder:   {folder.name}")
    report.print_line(f"Versions: {describe_versions()}, Python {platform.python_version()}")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{os.cpu_count()} CPU cores"
    report.print_line(f"Device:   {device} ({name})")
    vision, text = config.vision_config, config.text_config
    report.print_line(
        f"Model:    tower {vision.num_hidden_layers} x {vision.hidden_size}, decoder {text.model_type}"
        f" {text.num_hidden_layers} x {text.hidden_size}, interaction after {config.interaction_layer_indices},"
        f" head {'tied' if config.tie_word_embeddings else 'of its own'}"
    )
    changed = [
        name for name in CODE_FILES if not is_same(folder / name, PACKAGE_DIR / name) and (folder / name).is_file()
    ]
    report.print_line(f"Code:     {', '.join(changed) + ' differ from' if changed else 'that of'} this package")


def is_same(first: Path, second: Path) -> bool:
    return first.is_file() and first.read_bytes() == second.read_bytes()


def report_weights(report: Report, parts: list[PartWeights]):
    """Print a row for each part, with the layers of the tower and of the decoder together."""
    report.head("Weights")
    rows = defaultdict(list)
    for part in parts:
        rows[part.name if part.stack == "interaction_layers" else part.stack].append(part)
        report.faults[part.name] += part.faults
        report.doubts[part.name] += part.doubts
    for findings in (report.faults, report.doubts):
        for name in [name for name, texts in findings.items() if not texts]:
            del findings[name]
    report.print_line(f"  {'part':26} {'parameters':>13}  {'rms of matrices':16} {'lowest fit':22} findings")
    for name, members in rows.items():
        rms = [value for part in members for value in part.rms]
        fits = [(score, pair) for part in members for pair, score in (part.fits | part.structures).items()]
        lowest = f"{min(fits)[0]:.1f} ({min(fits)[1]})" if fits else "-"
        damaged = sum(bool(part.faults) for part in members)
        suspicious = sum(bool(part.doubts) and not part.faults for part in members)
        findings = [f"{damaged} damaged"] * bool(damaged) + [f"{suspicious} suspicious"] * bool(suspicious)
        number = f"{sum(part.num_parameters for part in members):,}"
        scale = f"{min(rms):.4f} - {max(rms):.4f}" if rms else "-"
        report.print_line(f"  {name:26} {number:>13}  {scale:16} {lowest:22} {', '.join(findings) or 'good'}")


def choose_precisions(report: Report, config: FusionConfig, num_parameters: int, device: str) -> list[str]:
    """
    List the precisions to load, the stored one first, as far as memory allows.

    Raises:
        ValueError: if not even 4 bits fit.
    """
    stored = str(config.dtype or "float32").removeprefix("torch.")
    if getattr(config, "quantization_config", None):
        return ["the stored quantization"]
    available = available_memory(device)
    fitting = []
    for name in dict.fromkeys((stored, "float32", "bfloat16", FOUR_BITS)):
        needed = num_parameters * BYTES_PER_WEIGHT[name] * MEMORY_MARGIN
        if needed < available:
            fitting.append(name)
        else:
            report.skipped.append(f"{name} (needs {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free)")
    if not fitting:
        raise ValueError(f"The model does not fit into the memory of {device}: {'; '.join(report.skipped)}.")
    return fitting


def available_memory(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return math.inf


def load(folder: Path, precision: str, device: str, trust_remote_code: bool):
    """Return the model and the processor, by this package's classes or through the Auto classes."""
    options = {"device_map": device}
    if precision == FOUR_BITS:
        options["quantization_config"] = nf4_config(double_quant=False)
    options["dtype"] = precision if hasattr(torch, precision) else "auto"
    model_class, processor_class = FusionForConditionalGeneration, FusionProcessor
    if trust_remote_code:
        model_class, processor_class = AutoModelForImageTextToText, AutoProcessor
        options["trust_remote_code"] = True
        processor = processor_class.from_pretrained(folder, trust_remote_code=True)
    else:
        processor = processor_class.from_pretrained(folder)
    return model_class.from_pretrained(folder, **options).eval(), processor


def count_right(scores: list[Score], answers: Iterable[str]) -> float:
    return mean(score.answer == answer for score, answer in zip(scores, answers, strict=True))


def print_scores(report: Report, title: str, scores: list[Score], answers: list[str]):
    """Print how many answers are right, and the log probability of the right answer and of the best wrong one."""
    right = sum(score.answer == answer for score, answer in zip(scores, answers, strict=True))
    own = [score.log_probs[answer] for score, answer in zip(scores, answers, strict=True)]
    wrong = [
        max(value for choice, value in score.log_probs.items() if choice != answer)
        for score, answer in zip(scores, answers, strict=True)
    ]
    report.print_line(f"  {title:44} {right:>3} of {len(scores):<3} {mean(own):>10.2f} {mean(wrong):>12.2f}")


ASKED = [(question.picture, question.prompt, question.choices) for question in QUESTIONS]
ASKED_OTHER = [(question.other_picture, question.prompt, question.choices) for question in QUESTIONS]
ASKED_BLANK = [(BLANK, question.prompt, question.choices) for question in QUESTIONS]
ANSWERS = [question.answer for question in QUESTIONS]
OTHER_ANSWERS = [question.other_answer for question in QUESTIONS]


def check_answers(report: Report, examiner: Examiner, precision: str) -> bool:
    """Ask every question about both of its pictures, whose answers differ, and about a blank one."""
    report.head(f"Answers in {precision}")
    report.print_line(f"  {'':44} {'right':>9}  {'log p right':>10} {'best wrong':>12}")
    scores = examiner.ask(ASKED)
    others = examiner.ask(ASKED_OTHER)
    print_scores(report, "each question about its picture", scores, ANSWERS)
    print_scores(report, "about the other picture, with its answer", others, OTHER_ANSWERS)
    print_scores(report, "about the other picture, with the first answer", others, ANSWERS)
    print_scores(report, "about a blank picture", examiner.ask(ASKED_BLANK), ANSWERS)
    is_good = min(count_right(scores, ANSWERS), count_right(others, OTHER_ANSWERS)) >= MIN_ANSWERS
    for question, score in zip(QUESTIONS, scores, strict=True):
        if score.answer != question.answer:
            report.print_line(f"  wrong: {question.text} {score.answer!r} instead of {question.answer!r}")
    if not is_good:
        report.fail(f"less than {MIN_ANSWERS:.0%} of the answers are right")
    return is_good


def check_mapping(report: Report, examiner: Examiner) -> bool:
    """Check that question tokens and patches are found again after both projectors."""
    text, vision = examiner.measure_mapping()
    report.head("Mappings: how often a row is closer to its own target than to another row's (0.5 is chance)")
    report.print_line(f"  question tokens, through the tower, to their embeddings   {text:.2f}")
    report.print_line(f"  image features, mapped back, to their patches             {vision:.2f}")
    lowest = min(text, vision)
    if not lowest >= MAPPING_LOST:
        report.fail("the mappings between text and vision are lost")
    elif lowest < MAPPING_GOOD:
        # No part is named, because damage of any part that a mapping passes through weakens it.
        report.notes.append(f"the mappings are weak, expected {MAPPING_GOOD} or more")
    return lowest >= MAPPING_LOST


def check_conditions(report: Report, examiner: Examiner, config: FusionConfig, time_limit: float):
    """Ask again under other conditions, up to the time limit; only trained latent grids are judged."""
    report.head("The same questions under other conditions")
    sizes = [size for size in LATENT_GRID_SIZES if size <= config.max_latent_grid_size]
    for size in sizes:
        is_trained = size in config.latent_grid_sizes
        title = f"{size**2} latents{'' if is_trained else ' (not trained)'}"
        if report.elapsed > time_limit:
            report.skipped.append(title)
            continue
        scores = examiner.ask(ASKED, latent_grid_size=size)
        print_scores(report, title, scores, ANSWERS)
        if is_trained and count_right(scores, ANSWERS) < MIN_ANSWERS:
            report.fail(f"with {title}, less than {MIN_ANSWERS:.0%} of the answers are right")
    if report.elapsed > time_limit:
        report.skipped += ["without the question in the tower", "the photograph", "without interaction layers"]
        return
    print_scores(report, "without the question in the tower", examiner.ask(ASKED, with_question=False), ANSWERS)
    report.print_line("  not judged, because models that know drawings only cannot tell:")
    print_scores(report, "a photograph of a cat: what animal is it?", examiner.ask([PHOTO_QUESTION]), ["cat"])
    for index, layer in enumerate(examiner.model.model.interaction_layers):
        handle = layer.register_forward_hook(lambda module, args, output: args[0])
        try:
            print_scores(report, f"without interaction layer {index}", examiner.ask(ASKED), ANSWERS)
        finally:
            handle.remove()


def check_precisions(
    report: Report, folder: Path, precisions: list[str], device: str, trust_remote_code: bool, time_limit: float
):
    report.head("The same questions in other precisions")
    for precision in precisions:
        if report.elapsed > time_limit:
            report.skipped.append(precision)
            continue
        scores = Examiner(*load(folder, precision, device, trust_remote_code)).ask(ASKED)
        print_scores(report, precision, scores, ANSWERS)
        if count_right(scores, ANSWERS) < MIN_ANSWERS:
            report.fail(f"in {precision}, less than {MIN_ANSWERS:.0%} of the answers are right")


def name_causes(report: Report, answers_ok: bool, mapping_ok: bool):
    """
    Turn doubts into faults where the model fails, and name a part by elimination if no tensor looks damaged.

    Answers do not need `text_to_vision_projector`. So a model that answers well but has lost its mappings has damage
    there.
    """
    if not report.failures:
        return
    for name, texts in report.doubts.items():
        report.faults[name] += texts
    report.doubts.clear()
    if report.faults:
        return
    if not mapping_ok:
        name = "text_to_vision_projector" if answers_ok else "multi_modal_projector or vision_tower"
        report.faults[name].append("mappings are lost, although its tensors look trained")
    elif not answers_ok:
        name = "decoder.embed_tokens, decoder.layers or lm_head"
        report.faults[name].append("answers are wrong, although mappings are right and all tensors look trained")


def give_verdict(report: Report, config: FusionConfig, device: str):
    peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_memory()
    report.print_line(f"\nTime: {report.elapsed:.0f} s. Peak memory: {peak / 1e9:.1f} GB.")
    if report.skipped:
        report.print_line(f"Skipped: {'; '.join(report.skipped)}.")
    for text in report.notes:
        report.print_line(f"Suspicious: {text}.")
    for name, texts in report.doubts.items():
        report.print_line(f"Suspicious: {name}: {'; '.join(texts)}.")
    for text in report.failures:
        report.print_line(f"Failed: {text}.")
    for name, texts in report.faults.items():
        report.print_line(f"Damaged: {name}: {'; '.join(texts)}.")
    names = [
        f"{name} (and lm_head, which is tied to it)" if config.tie_word_embeddings and name == EMBEDDING else name
        for name in report.faults
    ]
    report.print_line("PASS" if report.passed else f"FAIL: {', '.join(names) or 'a part that the checks cannot tell'}")


def peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
