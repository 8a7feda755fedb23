"""
Answer many questions in batches: the part of an evaluation that knows the model and no harness.

`lmms_model.py` (the plugin of lmms-eval) and `small_model/accuracy.py` ask through `Answerer`, so figures of both come
from the same code. All requests are checked before the first answer is generated. Requests of one batch have the same
settings and similar lengths, and questions about one image follow each other, so that its crops are encoded once.
"""

import hashlib
import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from logging import getLogger
from random import Random
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from fusion_vlm.evaluation.answer_log import AnswerLog, digest
from fusion_vlm.hub.loading import build_user_message, check_grid_sizes, limit_new_tokens, process
from fusion_vlm.processing_fusion import read_image


logger = getLogger(__name__)

DEFAULT_NEW_TOKENS = 1024  # as in the authors' adapter for lmms-eval
NUM_CONTEXT_MAPS = 32  # kept on the device, 18 MB each for a decoder of width 3072 in half precision
# Texts of one batch differ by fewer tokens than this: padding costs little beside hundreds of image tokens, and more
# questions about one image come together.
LENGTH_STEP = 32
MANY_IMAGES = ("refuse", "first")
NUM_LISTED = 20  # requests that a message names


class UnanswerableError(ValueError):
    """Requests that the model cannot answer; the message names each by its key."""


@dataclass(frozen=True)
class Request:
    """
    A question with its image and the turns before it.

    Args:
        key (`dict`):
            JSON that names the request in messages and in the log, such as its task and document.
        turns (`list[str]`):
            A question, its answer, ..., and the question to answer.
        read_images (`Callable`):
            Returns the images, decoded or as `read_image` takes them. Called when an image is needed, and not kept.
        options (`dict`):
            Options of `generate`. Answers are greedy unless `do_sample` is true.
        stop (`tuple[str, ...]`):
            Texts that end an answer, and are not part of it.
        many_images (`str`):
            What to do with more than one image: `"refuse"`, or take the `"first"`.
    """

    key: dict
    turns: list[str]
    read_images: Callable[[], list] = list
    options: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    many_images: str = "refuse"

    def open_image(self) -> Image.Image | None:
        """
        Return the image as 8-bit RGB, None for a question without an image.

        Raises:
            ValueError: if there are several images, or one that cannot be read.
        """
        images = self.read_images()
        if len(images) > 1 and self.many_images == "refuse":
            raise ValueError(f"{len(images)} images in a question, but FUSION reads one: many_images=first takes it")
        return read_image(images[0]) if images else None

    def build_messages(self, image: Any = None) -> list[dict]:
        """Return the conversation as the processor takes it."""
        messages = [build_user_message(self.turns[0], image)]
        for index, text in enumerate(self.turns[1:], 1):
            messages.append(
                {"role": "assistant" if index % 2 else "user", "content": [{"type": "text", "text": text}]}
            )
        return messages


@dataclass(frozen=True)
class Job:
    """A request that has been checked, with what decides about its batch."""

    request: Request
    log_key: dict
    image: str | None  # hash of its pixels
    grid_sizes: dict[str, int]
    num_text_tokens: int
    max_new_tokens: int

    @property
    def settings(self) -> str:
        """Return what all requests of a batch have in common."""
        kind = [self.image is None, self.grid_sizes, self.max_new_tokens, self.request.options, self.request.stop]
        return json.dumps(kind, sort_keys=True)


class Answerer:
    """
    A model that answers lists of requests.

    Args:
        model (`FusionForConditionalGeneration`), processor (`FusionProcessor`)
        batch_size (`int`):
            Number of requests in a batch. Halved for good if a GPU's memory does not suffice.
        image_grid_size (`int`, *optional*), latent_grid_size (`int`, *optional*):
            Sides of the grids. Default to those of the model.
        draw_latents (`int`, *optional*):
            Seed with which the side of the latent grid is drawn for each question, from `config.latent_grid_sizes`.
            The draw depends on the key of the request alone, so batches and restarts do not change it.
        log (`AnswerLog`, *optional*):
            Answers that it has are not generated again; each batch of new ones is added.
        show_progress (`bool`):
            Whether to show progress bars.

    Attributes:
        on_answers (`Callable`, *optional*): called with the number of answers of each batch that was generated.

    Raises:
        ValueError: for a grid that the model does not have, and for both kinds of latent grid.
    """

    def __init__(
        self,
        model,
        processor,
        *,
        batch_size: int = 8,
        image_grid_size: int | None = None,
        latent_grid_size: int | None = None,
        draw_latents: int | None = None,
        log: AnswerLog | None = None,
        show_progress: bool = False,
    ):
        if draw_latents is not None and latent_grid_size is not None:
            raise ValueError("latent_grid_size and draw_latents exclude each other: pass one of the two.")
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.grid_sizes = check_grid_sizes(model.config, latent_grid_size, image_grid_size)
        self.draw_latents, self.log, self.show_progress = draw_latents, log, show_progress
        self.on_answers: Callable[[int], None] | None = None
        self.context_maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.num_encoded = 0  # images whose crops were encoded

    def answer(self, requests: Sequence[Request], gather: Callable[[list], list] = list) -> list[str]:
        """
        Return the answers to all requests, in their order.

        Args:
            requests (`list[Request]`)
            gather (`Callable`):
                Joins the problems of several processes, so that all of them stop: else the others would wait for the
                one that has stopped. Each process has to call `answer` as often.

        Raises:
            UnanswerableError: before any answer is generated, naming all requests that cannot be answered.
        """
        jobs = self._check(requests, gather)
        found = {digest(job.log_key): self.log.find(job.log_key) if self.log else None for job in jobs}
        # Equal requests have one answer: harnesses repeat some to give all processes as many.
        left = {digest(job.log_key): job for job in jobs if found[digest(job.log_key)] is None}
        found.update(self._generate_all(left))
        return [found[digest(job.log_key)] for job in jobs]

    # Checks ---------------------------------------------------------------------------------------------------------

    def _check(self, requests: Sequence[Request], gather: Callable[[list], list]) -> list[Job]:
        jobs, problems = [], []
        for request in tqdm(requests, "Checking requests", disable=not self.show_progress or len(requests) == 1):
            try:
                jobs.append(self._check_one(request))
            except ValueError as error:
                problems.append((request.key, str(error)))
        if problems := gather(problems):
            raise UnanswerableError(describe_problems(problems))
        cut = [job.request.key for job in jobs if job.max_new_tokens < wanted_tokens(job.request)]
        if cut:
            logger.warning(
                "The model has no positions for answers of the wanted length after %d prompts; such an answer ends"
                " where the positions do: %s",
                len(cut),
                list_keys(cut),
            )
        return jobs

    def _check_one(self, request: Request) -> Job:
        image = request.open_image()
        grid_sizes = self._choose_grid_sizes(request)
        # The prompt decides what the model reads: two tasks may render one document in different ways.
        prompt = self._render(request, has_image=image is not None)
        num_text_tokens = self._count_text_tokens(prompt)
        length = num_text_tokens + self._count_placeholders(request, grid_sizes, image is not None)
        shape = {"input_ids": torch.empty(1, length, device="meta")}
        max_new_tokens = limit_new_tokens(self.model.config, shape, wanted_tokens(request))
        image_hash = None if image is None else hash_image(image)
        generation = {**request.options, "max_new_tokens": wanted_tokens(request), "stop": list(request.stop)}
        log_key = {**request.key, "prompt": digest([prompt, *request.turns]), "image": image_hash, "grids": grid_sizes}
        log_key["generation"] = generation
        return Job(request, log_key, image_hash, grid_sizes, num_text_tokens, max_new_tokens)

    def _choose_grid_sizes(self, request: Request) -> dict[str, int]:
        if self.draw_latents is None:
            return self.grid_sizes
        rng = Random(json.dumps([self.draw_latents, request.key], sort_keys=True))
        return {**self.grid_sizes, "latent_grid_size": rng.choice(self.model.config.latent_grid_sizes)}

    def _render(self, request: Request, has_image: bool) -> str:
        """Return a prompt with a placeholder for each image and latent grid."""
        # transformers sanitizes only what it tokenizes, so control tokens of a question are broken up here. That adds
        # a token or two to the count, and the log has the question itself.
        turns = [break_up(text, self.processor.find_control_tokens(text)) for text in request.turns]
        messages = replace(request, turns=turns).build_messages("" if has_image else None)
        return self.processor.apply_chat_template(messages, add_generation_prompt=True)

    def _count_text_tokens(self, prompt: str) -> int:
        """Return the number of tokens of a rendered prompt, in which each placeholder is one token."""
        tokenizer = self.processor.tokenizer
        has_bos = tokenizer.bos_token and prompt.startswith(tokenizer.bos_token)
        return len(tokenizer(prompt, add_special_tokens=not has_bos, verbose=False).input_ids)

    def _count_placeholders(self, request: Request, grid_sizes: dict[str, int], has_image: bool) -> int:
        """Return by how many tokens the placeholders of a prompt grow."""
        defaults = self.processor.image_processor
        num_latents = grid_sizes.get("latent_grid_size", defaults.latent_grid_size) ** 2
        num_image_tokens = grid_sizes.get("image_grid_size", defaults.image_grid_size) ** 2
        num_questions = (len(request.turns) + 1) // 2
        return num_questions * (num_latents - 1) + has_image * (num_image_tokens - 1)

    # Generation -----------------------------------------------------------------------------------------------------

    def _generate_all(self, jobs: dict[str, Job]) -> dict[str, str]:
        answers = {}
        progress = tqdm(total=len(jobs), desc="Answering", disable=not self.show_progress or len(jobs) <= 1)
        # The next batch is prepared while the model works: images take as long as short answers on a GPU.
        with progress, ThreadPoolExecutor(1) as preparation:
            batches = self._cut_batches(list(jobs.values()))
            batch = next(batches, None)
            inputs = preparation.submit(self._prepare, batch) if batch else None
            while batch:
                following = next(batches, None)
                later = preparation.submit(self._prepare, following) if following else None
                texts = self._generate(batch, inputs, preparation)
                if self.log:
                    self.log.add([(job.log_key, text) for job, text in zip(batch, texts, strict=True)])
                answers.update({digest(job.log_key): text for job, text in zip(batch, texts, strict=True)})
                progress.update(len(batch))
                if self.on_answers:
                    self.on_answers(len(batch))
                batch, inputs = following, later
        return answers

    def _cut_batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """Yield batches of equal settings, the longest first; questions about one image are neighbors."""
        groups, first_seen = defaultdict(list), {}
        for job in jobs:
            groups[job.settings].append(job)
            first_seen.setdefault(job.image, len(first_seen))
        for group in groups.values():
            group.sort(
                key=lambda job: (-(job.num_text_tokens // LENGTH_STEP), first_seen[job.image], -job.num_text_tokens)
            )
            queue = deque(group)
            while queue:
                yield [queue.popleft() for _ in range(min(self.batch_size, len(queue)))]

    def _prepare(self, batch: list[Job]):
        """Return the inputs of a batch, on the CPU."""
        messages = [job.request.build_messages(job.request.open_image()) for job in batch]
        return process(self.processor, messages, batch[0].grid_sizes)

    def _generate(self, batch: list[Job], inputs: Future, preparation: ThreadPoolExecutor) -> list[str]:
        try:
            return self._generate_batch(batch, inputs.result(), preparation)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Outside of the handler, whose traceback holds the tensors of the failed batch.
        half = len(batch) // 2
        self.batch_size = min(self.batch_size, half)
        self.context_maps.clear()
        torch.cuda.empty_cache()
        logger.warning("The GPU's memory is too small for %d requests; the batch size is now %d.", len(batch), half)
        parts = [batch[:half], batch[half:]]
        return [
            text
            for part in parts
            for text in self._generate(part, preparation.submit(self._prepare, part), preparation)
        ]

    def _generate_batch(self, batch: list[Job], inputs, preparation: ThreadPoolExecutor) -> list[str]:
        request, num_prompt = batch[0].request, inputs["input_ids"].shape[1]
        options = {**request.options, "max_new_tokens": batch[0].max_new_tokens}
        options.setdefault("do_sample", False)
        if request.stop:
            options |= {"stop_strings": list(request.stop), "tokenizer": self.processor.tokenizer}
        if batch[0].image is not None:
            options["context_map"] = self._get_context_maps(batch, inputs.pop("high_res_pixel_values"))
        output = self.model.generate(**inputs.to(self.model.device), **options)[:, num_prompt:].cpu()
        # On the thread of the preparation, because tokenizers are not thread-safe.
        texts = preparation.submit(self.processor.batch_decode, output, skip_special_tokens=True).result()
        return [cut_at_stop(text, request.stop).strip() for text in texts]

    @torch.no_grad()
    def _get_context_maps(self, batch: list[Job], crops: torch.Tensor) -> torch.Tensor:
        """Return the context maps of a batch, one row if all questions are about one image."""
        names = [job.image for job in batch]
        missing = {name: row for row, name in enumerate(names) if name not in self.context_maps}
        maps = {name: self.context_maps[name] for name in names if name in self.context_maps}
        if missing:
            rows = crops[list(missing.values())].to(self.model.device)
            # Copies, because a row would keep the maps of its whole batch in memory.
            encoded = [row.clone() for row in self.model.get_context_map(rows).split(1)]
            maps.update(zip(missing, encoded, strict=True))
            self.num_encoded += len(missing)
        for name in dict.fromkeys(names):
            self.context_maps[name] = maps[name]
            self.context_maps.move_to_end(name)
        while len(self.context_maps) > NUM_CONTEXT_MAPS:
            self.context_maps.popitem(last=False)
        return maps[names[0]] if len(maps) == 1 else torch.cat([maps[name] for name in names])


def wanted_tokens(request: Request) -> int:
    """Return the longest answer that a request asks for, in tokens."""
    return request.options.get("max_new_tokens", DEFAULT_NEW_TOKENS)


def hash_image(image: Image.Image) -> str:
    """Return a hash of an image's size and pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:32]


def break_up(text: str, tokens: Sequence[str]) -> str:
    """Return a text with a space in each of the tokens that it spells out."""
    for token in tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stop texts."""
    return text[: min((text.find(each) for each in stop if each in text), default=len(text))]


def list_keys(keys: Sequence[dict]) -> str:
    """Return keys as text, with what they have in common said once: `task pope, split test, doc_id 3, 7, 12`."""
    names = {name: len({key.get(name) for key in keys}) for name in keys[0]}
    common = [f"{name} {keys[0][name]}" for name, number in names.items() if number == 1]
    told = [[str(key.get(name)) for name, number in names.items() if number > 1] for key in keys[:NUM_LISTED]]
    varying = "/".join(name for name, number in names.items() if number > 1)
    rest = f" and {len(keys) - NUM_LISTED} more" if len(keys) > NUM_LISTED else ""
    varied = [f"{varying} {', '.join('/'.join(each) for each in told)}{rest}"] if varying else []
    return ", ".join(common + varied)


def describe_problems(problems: Sequence[tuple[dict, str]]) -> str:
    """Return a message with each problem once, and the requests that have it."""
    by_problem = defaultdict(list)
    for key, problem in problems:
        by_problem[problem].append(key)
    lines = [f"* {problem.rstrip('.')} ({list_keys(keys)})" for problem, keys in by_problem.items()]
    if len(lines) > NUM_LISTED:
        lines[NUM_LISTED:] = [f"* and {len(lines) - NUM_LISTED} other problems"]
    number = f"{len(problems)} requests" if len(problems) > 1 else "1 request"
    return "\n".join([f"{number} cannot be answered, so no answer was generated:", *lines])
