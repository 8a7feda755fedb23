"""
The model `fusion_vl` of lmms-eval.

    python -m lmms_eval --model fusion_vl --model_args pretrained=out/fusion-phi3.5-3b,dtype=float16 \\
        --tasks pope --batch_size 8

`manifest.py` registers it. docs/evaluation.md lists the arguments.
"""

import difflib
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from fusion_vlm.evaluation.answer_log import AnswerLog
from fusion_vlm.evaluation.answering import DEFAULT_NEW_TOKENS, MANY_IMAGES, Answerer, Request
from fusion_vlm.evaluation.identity import identify_model
from fusion_vlm.hub.loading import check_device, find_base, load, nf4_config, silence_libraries
from fusion_vlm.hub.names import find_fusion


DTYPES = ("auto", "float16", "bfloat16", "float32")
LARGEST_BATCH = 32  # where `batch_size=auto` begins
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
IMAGE_TOKEN = "<image>"  # tasks mark the image's place with it; FUSION has the image before the text
# Options of tasks for other models. They change no answer of FUSION, which resizes each image to a square.
WITHOUT_EFFECT = ("image_aspect_ratio",)


class FusionVL(lmms):
    """
    A FUSION that answers lmms-eval's tasks.

    Args:
        pretrained (`str`):
            Folder or Hub id of a model, or folder of an adapter.
        dtype (`str`):
            `float16`, `bfloat16`, `float32`, or `auto`, the dtype in which the weights are stored.
        device (`str`, *optional*):
            Such as `cpu` or `cuda:1`. Defaults to the GPUs if there are any; one for each of several processes.
        batch_size (`int` or `str`):
            Questions at once; `auto` begins with `max_batch_size` or 32, and halves it while memory is too small.
        max_batch_size (`int`, *optional*):
            Upper limit of `batch_size`.
        latent_grid_size (`int`, *optional*):
            Side of a question's latent grid. Defaults to the model's own.
        draw_latents (`int`, *optional*):
            Seed of a draw of that side for each question, as the authors evaluate; excludes `latent_grid_size`.
        image_grid_size (`int`, *optional*):
            Side of the grid of image tokens. Defaults to the model's own.
        many_images (`str`):
            Whether to `refuse` a question with several images, or to take the `first`. A task overrides it by
            `many_images` in its `generation_kwargs`.
        load_in_4bit (`bool`):
            Whether to load the decoder in 4 bits.
        answers (`str`, *optional*):
            File of answers, with which a run that was killed resumes; see `AnswerLog`.
        trust_remote_code (`bool`):
            Whether the code of the folder runs, instead of the installed package.
        unknown:
            Refused by name.

    Attributes:
        settings (`dict`): what identifies the run, as JSON.

    Raises:
        ValueError: for an argument that is unknown or wrong.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        latent_grid_size: int | None = None,
        draw_latents: int | None = None,
        image_grid_size: int | None = None,
        many_images: str = "refuse",
        load_in_4bit: bool = False,
        answers: str | None = None,
        trust_remote_code: bool = False,
        **unknown,
    ):
        super().__init__()
        check_arguments(unknown)
        check_choice("dtype", dtype, DTYPES)
        check_choice("many_images", many_images, MANY_IMAGES)
        numbers = {"latent_grid_size": latent_grid_size, "draw_latents": draw_latents}
        check_numbers(**numbers, image_grid_size=image_grid_size, max_batch_size=max_batch_size)
        self.batch_size = read_batch_size(batch_size, max_batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        # lmms-eval passes one --device to all processes.
        if self._world_size > 1 and (device is None or device.startswith("cuda")):
            device = str(self.accelerator.device)
        self.many_images, self.warned = many_images, set()
        model, processor, weights = load_model(
            find_fusion(str(pretrained)), dtype, device or "auto", load_in_4bit, trust_remote_code
        )
        self.device = model.device
        self.answerer = Answerer(
            model,
            processor,
            batch_size=self.batch_size,
            image_grid_size=image_grid_size,
            latent_grid_size=latent_grid_size,
            draw_latents=draw_latents,
            show_progress=self._rank == 0,
        )
        self.settings = {
            "model": str(pretrained),
            "weights": weights,
            "code": "folder" if trust_remote_code else "package",
            "quantization": "nf4" if load_in_4bit else None,
            "many_images": many_images,
            **describe_model(self.answerer),
        }
        if answers is not None:
            # Where the model is and which images are refused changes no answer.
            identity = {name: self.settings[name] for name in self.settings.keys() - {"model", "many_images"}}
            self.answerer.log = AnswerLog(answers, identity, rank=self._rank, world_size=self._world_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the answer to each request."""
        num_seen, asked = Counter(), []
        for request in requests:
            context, options, doc_to_visual, doc_id, task, split = request.args
            key = {"task": task, "split": split, "doc_id": doc_id}
            read_images = self._find_images(key, doc_to_visual)
            asked.append(self._build_request(key, context, options, read_images, num_seen))
        return self.answerer.answer(asked, self._gather)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """
        Return the answers of all rounds to each request.

        A task makes the prompt of a round from the answers before it, so each prompt is a conversation of its own.
        """
        said: list[list[str]] = [[] for _ in requests]
        notes: list[Any] = [None] * len(requests)
        left, round_index = list(range(len(requests))), 0
        while left or not round_index:
            num_seen, asked, going_on = Counter(), [], []
            for index in left:
                context, options, doc_to_visual, doc_to_text, doc_id, task, split = requests[index].args
                key = {"task": task, "split": split, "doc_id": doc_id}
                read_images = self._find_images(key, doc_to_visual)
                if round_index:
                    visuals, context, has_ended, kept, notes[index] = doc_to_text(
                        self.task_dict[task][split][doc_id],
                        previous_output=said[index],
                        round_idx=round_index,
                        previous_round_info=notes[index],
                    )
                    said[index] = list(kept)
                    if has_ended:
                        continue
                    read_images = KeptImages(visuals)
                going_on.append(index)
                asked.append(
                    self._build_request({**key, "round": round_index}, context, options, read_images, num_seen)
                )
            # Later rounds may be fewer in one process than in another, so only the first one waits for all.
            answers = self.answerer.answer(asked, list if round_index else self._gather)
            for index, answer in zip(going_on, answers, strict=True):
                said[index].append(answer)
            left, round_index = going_on, round_index + 1
        return said

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks of the type `multiple_choice`."""
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise NotImplementedError(
            f"fusion_vl generates answers and computes no log-likelihoods, which {tasks} asks for (output_type:"
            " multiple_choice or loglikelihood). Take a variant of the task with output_type: generate_until; the"
            " authors' figures come from generated answers too."
        )

    def clean(self):
        """Free the context maps; the model stays, because lmms-eval calls this between evaluations of an instance."""
        self.answerer.context_maps.clear()
        torch.cuda.empty_cache()

    @property
    def _gather(self) -> Callable[[list], list]:
        """Return the function that joins the lists of all processes."""
        return gather_object if self._world_size > 1 else list

    def _find_images(self, key: dict, doc_to_visual: Callable) -> Callable[[], list]:
        documents = self.task_dict[key["task"]][key["split"]]
        return lambda: list_visuals(doc_to_visual(documents[key["doc_id"]]))

    def _build_request(
        self, key: dict, context: str, generation: dict, read_images: Callable[[], list], num_seen: Counter
    ) -> Request:
        options, stop, many_images, unknown = read_generation(generation)
        if unknown - self.warned:
            logger.warning(
                f"Task {key['task']}: fusion_vl does not know the generation settings"
                f" {', '.join(sorted(unknown - self.warned))}, which have no effect."
            )
            self.warned |= unknown
        if options["do_sample"]:  # `repeats`: sampled answers to one question are different answers
            place = (key["task"], key["split"], key["doc_id"])
            key = {**key, "repeat": num_seen[place]}
            num_seen[place] += 1
        text = context.replace(IMAGE_TOKEN, "").strip()
        return Request(key, [text], read_images, options, stop, many_images or self.many_images)


class KeptImages:
    """The images that a task has returned for a round, as a function that returns them."""

    def __init__(self, visuals):
        self.images = list_visuals(visuals)

    def __call__(self) -> list:
        return self.images


# Arguments ----------------------------------------------------------------------------------------------------------


def check_arguments(unknown: dict):
    """Raise a ValueError that names unknown arguments of `FusionVL`."""
    if not unknown:
        return
    known = [name for name in inspect.signature(FusionVL.__init__).parameters if name not in ("self", "unknown")]
    hints = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        hints.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    raise ValueError(f"fusion_vl has no model argument {', '.join(hints)}. Its arguments are: {', '.join(known)}.")


def check_choice(name: str, value: Any, choices: Sequence[str]):
    """Raise a ValueError for a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}.")


def check_numbers(**values):
    """Raise a ValueError for a value that is no whole number."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}, expected a whole number.")


def read_batch_size(batch_size: int | str, max_batch_size: int | None) -> int:
    """Return the number of questions at once, from lmms-eval's `N`, `auto` and `auto:N`."""
    text, limit = str(batch_size), max_batch_size or LARGEST_BATCH
    if text.partition(":")[0] == "auto":
        return limit
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected a number from 1 on, or auto.")
    return min(int(text), max_batch_size or int(text))


# Models -------------------------------------------------------------------------------------------------------------


def load_model(path: str, dtype: str, device: str, four_bit: bool, trust_remote_code: bool) -> tuple[Any, Any, str]:
    """Return model, processor, and the identity of the weights of a folder or Hub id."""
    base = find_base(path)
    if trust_remote_code and base is None:
        silence_libraries()
        check_device(device)
        options = {"dtype": dtype, "device_map": device, "trust_remote_code": True}
        if four_bit:
            options["quantization_config"] = nf4_config()
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(path, **options)
    else:
        model, processor = load(path, dtype=dtype, device=device, four_bit=four_bit)
    weights = [identify_model(each, with_code=trust_remote_code) for each in (path, base) if each]
    return model, processor, "+".join(weights)


def describe_model(answerer: Answerer) -> dict:
    """Return what answers depend on beside the weights, as JSON."""
    model, defaults = answerer.model, answerer.processor.image_processor
    sizes = {"image_grid_size": defaults.image_grid_size, "latent_grid_size": defaults.latent_grid_size}
    sizes |= answerer.grid_sizes
    if answerer.draw_latents is not None:
        sizes["latent_grid_size"] = list(model.config.latent_grid_sizes)
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        **sizes,
        "draw_latents": answerer.draw_latents,
        "device": model.device.type,
        "fusion_vlm": version("fusion-vlm"),
        "transformers": transformers.__version__,
        "torch": str(torch.__version__),
    }


# Requests -----------------------------------------------------------------------------------------------------------


def read_generation(generation: dict) -> tuple[dict, tuple[str, ...], str | None, set[str]]:
    """
    Read the `generation_kwargs` of a task.

    Returns:
        Options of `generate`, stop texts, `many_images` if the task has it, and the names of unknown settings.

    Raises:
        ValueError: if the task asks for several answers at once, or for a wrong `many_images` or `max_new_tokens`.
    """
    options = {name: value for name, value in generation.items() if value is not None and name not in WITHOUT_EFFECT}
    until, many_images = options.pop("until", []), options.pop("many_images", None)
    if many_images is not None:
        check_choice("many_images in generation_kwargs", many_images, MANY_IMAGES)
    # lmms-eval adds the separator of examples to every task that names no stop text, which would cut a reasoned
    # answer at its first blank line.
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text and text != "\n\n")
    is_warm = options.get("temperature", 0) > 0
    options["do_sample"] = bool(options.get("do_sample", is_warm)) and options.get("temperature", 1) > 0
    if not options["do_sample"]:
        options = {name: value for name, value in options.items() if name not in SAMPLING}
    options.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
    check_numbers(max_new_tokens=options["max_new_tokens"])
    if options.get("num_return_sequences", 1) != 1:
        raise ValueError(
            "num_return_sequences is not 1: for several answers to a question, use lmms-eval's --repeats."
        )
    known = vars(GenerationConfig())
    unknown = {name for name in options if name not in known}
    return {name: value for name, value in options.items() if name in known}, stop, many_images, unknown


def list_visuals(visuals) -> list:
    """Return the images of a document: none for None, and those of nested lists in one list."""
    if visuals is None:
        return []
    return (
        [each for item in visuals for each in list_visuals(item)] if isinstance(visuals, (list, tuple)) else [visuals]
    )
