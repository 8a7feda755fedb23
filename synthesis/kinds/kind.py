"""A kind of sample as one record, and the forms that answers of language models may have."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.scenes.scene import Scene


@dataclass(frozen=True)
class AnswerForm:
    """
    The JSON that a language model has to answer when it writes turns, as plain data: exact runs need no pydantic.

    Args:
        name (`str`): name of the JSON schema. It is sent with each call, so cached calls of another name are not used.
        turn (`str`): form of each turn: `question`, `typed_question` or `choice` (models/answers.py).
        min_turns (`int`), max_turns (`int`)
    """

    name: str
    turn: str
    min_turns: int
    max_turns: int


ONE_QUESTION = AnswerForm("Questions", "question", 1, 1)
TWO_QUESTIONS = AnswerForm("TwoQuestions", "question", 1, 2)
SHORT_CONVERSATION = AnswerForm("ShortConversation", "typed_question", 2, 4)
LONG_CONVERSATION = AnswerForm("LongConversation", "typed_question", 4, 6)
CHOICES = AnswerForm("MultipleChoice", "choice", 1, 3)


@dataclass(frozen=True)
class Kind:
    """
    A kind of sample. Unless it is exact only, models also need its prompts `describe_NAME.txt` and `ask_NAME.txt`.

    Args:
        name (`str`)
        build_scenes (`Callable[[Sample, Random], list[Scene]]`): builds the scenes of an exact sample: one, or the
            left and the right one. The sample has nothing but its identity yet.
        ask (`Callable[[Sample, list[Scene], Random], list[Turn]]`): writes the exact turns about these scenes.
        answer (`AnswerForm`): form of the turns that a language model writes.
        turn_type (`str`, *optional*): type of these turns; `None` if the model names the type of each.
        num_answer_tokens (`int`): about the length of these turns, for the estimate of costs.
        is_caption (`bool`): whether the kind is for pre-training on captions.
        has_two_images (`bool`): whether a sample is a left and a right image.
        is_exact_only (`bool`): whether the samples are drawn pages (documents/), which no image model can draw from a
            text. `build_scenes` and `ask` then have pages for scenes, and a run with a language model has no such
            kind.
    """

    name: str
    build_scenes: Callable[[Sample, random.Random], list[Scene]]
    ask: Callable[[Sample, list[Scene], random.Random], list[Turn]]
    answer: AnswerForm
    turn_type: str | None
    num_answer_tokens: int
    is_caption: bool = False
    has_two_images: bool = False
    is_exact_only: bool = False
