"""Questions about bundled pictures whose answers any trained model knows, and the scores of a model's answers."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fusion_vlm.hub.loading import build_user_message


PACKAGE_DIR = Path(__file__).resolve().parents[1]
PICTURES = PACKAGE_DIR / "verification" / "pictures"
PHOTO = PACKAGE_DIR / "hub" / "chelsea.jpg"  # of a cat
# The training data of the released models and of the small one has this hint. Without it, answers are sentences.
HINT = "Answer with a single word or phrase."
COLORS = ("red", "blue", "green", "black", "yellow", "purple")
SHAPES = ("circle", "star", "heart", "cross", "triangle", "square")
DIRECTIONS = ("left", "right", "above", "below")
NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"}
IN_RELATION = "left, right, above or below?"


@dataclass(frozen=True)
class Question:
    """
    A question that has different answers about two pictures.

    Args:
        picture, other_picture (`str`): names of files in `pictures`.
        text (`str`): the question.
        answer, other_answer (`str`): the right answer about each picture.
        choices (`tuple[str]`): all answers that are compared.
    """

    picture: str
    other_picture: str
    text: str
    answer: str
    other_answer: str
    choices: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"{self.text}\n{HINT}"


# tests/verification/test_verify.py draws the pictures: two objects each, or two and four triangles.
QUESTIONS = (
    Question("circle_star", "star_circle", "What colour is the circle?", "red", "blue", COLORS),
    Question("circle_star", "star_circle", "What colour is the star?", "blue", "red", COLORS),
    Question("circle_star", "star_circle", "What shape is the red object?", "circle", "star", SHAPES),
    Question("circle_star", "star_circle", "What shape is the blue object?", "star", "circle", SHAPES),
    Question(
        "circle_star",
        "mirrored",
        f"Where is the circle in relation to the blue object: {IN_RELATION}",
        "left",
        "right",
        DIRECTIONS,
    ),
    Question(
        "circle_star",
        "mirrored",
        f"Where is the star in relation to the red object: {IN_RELATION}",
        "right",
        "left",
        DIRECTIONS,
    ),
    Question("heart_cross", "cross_heart", "What colour is the heart?", "green", "black", COLORS),
    Question("heart_cross", "cross_heart", "What shape is the black object?", "cross", "heart", SHAPES),
    Question(
        "heart_cross",
        "swapped",
        f"Where is the heart in relation to the black object: {IN_RELATION}",
        "above",
        "below",
        DIRECTIONS,
    ),
    Question("two", "four", "How many triangles are there in the picture?", "2", "4", tuple(NUMBERS)),
    Question("four", "two", "How many yellow objects are there in the picture?", "4", "2", tuple(NUMBERS)),
)
BLANK = "blank"
PHOTO_QUESTION = ("photo", f"What animal is this?\n{HINT}", ("cat", "dog", "bird", "horse"))


@dataclass
class Score:
    """
    A model's choice among the answers to one question.

    Args:
        answer (`str`): the likeliest of the choices.
        log_probs (`dict[str, float]`): natural logarithm of the probability of each choice's first token.
    """

    answer: str
    log_probs: dict[str, float]


def read_picture(name: str) -> Image.Image:
    """Return a bundled picture, the photograph or the blank picture by its name."""
    if name == BLANK:
        return Image.new("RGB", (336, 336), (128, 128, 128))
    return Image.open(PHOTO if name == PHOTO_QUESTION[0] else PICTURES / f"{name}.png").convert("RGB")


class Examiner:
    """
    Ask a model about pictures; the context map of a picture is computed once and cached.

    Args:
        model: a FUSION model, of this package's class or of a folder's own.
        processor: its processor.
    """

    def __init__(self, model, processor):
        self.model = model
        self.processor = processor
        self.context_maps: dict[str, torch.Tensor] = {}

    def ask(
        self, questions: list[tuple[str, str, tuple[str, ...]]], *, with_question: bool = True, **grid_sizes: int
    ) -> list[Score]:
        """
        Answer questions, each given as the name of a picture, a text and the choices.

        Args:
            with_question (`bool`): whether the vision tower reads the question.
            grid_sizes: `latent_grid_size`, as the processor takes it.
        """
        scores: dict[int, Score] = {}
        for picture in dict.fromkeys(name for name, _, _ in questions):
            indices = [index for index, question in enumerate(questions) if question[0] == picture]
            inputs = self.process(picture, [questions[index][1] for index in indices], grid_sizes)
            if not with_question:
                del inputs["question_input_ids"], inputs["question_attention_mask"]
            with torch.no_grad():
                logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
            log_probs = logits.float().log_softmax(dim=-1).cpu()
            for row, index in zip(log_probs, indices, strict=True):
                scores[index] = self.score(row, questions[index][1], questions[index][2])
        return [scores[index] for index in range(len(questions))]

    def process(self, picture: str, texts: list[str], grid_sizes: dict[str, int]):
        """Return the model's inputs for questions about a picture, with the context map instead of the crops."""
        image = read_picture(picture)
        inputs = self.processor.apply_chat_template(
            [[build_user_message(text, image)] for text in texts],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=grid_sizes,
        ).to(self.model.device)
        crops = inputs.pop("high_res_pixel_values")[:1]
        if picture not in self.context_maps:
            with torch.no_grad():
                self.context_maps[picture] = self.model.get_context_map(crops)
        inputs["context_map"] = self.context_maps[picture]
        return inputs

    def score(self, log_probs: torch.Tensor, text: str, choices: tuple[str, ...]) -> Score:
        """Choose among the answers by the log probabilities of the next token."""
        tokens = self.first_tokens(text, choices)
        each = {choice: log_probs[sorted(ids)].logsumexp(dim=0).item() for choice, ids in tokens.items()}
        # Comparisons with NaN are false, so the order of the choices would decide.
        best = max(each, key=lambda choice: -math.inf if math.isnan(each[choice]) else each[choice])
        return Score(best, each)

    def first_tokens(self, text: str, choices: tuple[str, ...]) -> dict[str, set[int]]:
        """
        Find the tokens that each answer may begin with, after the prompt.

        Numbers may be digits or words, and words may be capitalized. A token that begins two answers is dropped.
        """
        tokenizer = self.processor.tokenizer
        prompt = self.processor.apply_chat_template(
            [build_user_message(text)], add_generation_prompt=True, tokenize=False
        )
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        tokens = {}
        for choice in choices:
            words = {choice, NUMBERS.get(choice, choice)}
            words |= {word.capitalize() for word in words}
            all_ids = [tokenizer(prompt + word, add_special_tokens=False).input_ids for word in sorted(words)]
            tokens[choice] = {ids[len(prompt_ids)] for ids in all_ids if ids[: len(prompt_ids)] == prompt_ids}
        return {
            choice: ids.difference(*(tokens[other] for other in choices if other != choice)) or ids
            for choice, ids in tokens.items()
        }

    def measure_mapping(self) -> tuple[float, float]:
        """
        Check the two mappings that training ties together (paper section 3.3).

        Returns:
            `tuple[float, float]`: how often the tower's output for a question token is closer to the embedding of that
            token than to another token's; and how often an image feature, mapped back, is closer to its own patch. 0.5
            is chance.
        """
        question = QUESTIONS[4]
        inputs = self.process(question.picture, [question.prompt], {})
        ids = inputs["question_input_ids"]
        with torch.no_grad():
            outputs = self.model.model.get_image_features(inputs["pixel_values"], ids, return_dict=True)
            mapped = self.model.model.text_to_vision_projector(outputs.image_features)
        first_places = [ids[0].tolist().index(token) for token in sorted(set(ids[0].tolist()))]
        text = own_target_share(outputs.question_features[0, first_places], outputs.question_embeds[0, first_places])
        return text, own_target_share(mapped[0], outputs.patch_embeds[0])


def own_target_share(features: torch.Tensor, targets: torch.Tensor) -> float:
    """Count how often a row is closer to its own target than to another row's; NaN is never closer."""
    features, targets = (torch.nn.functional.normalize(rows.float(), dim=-1) for rows in (features, targets))
    cosines = features @ targets.T
    others = ~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return (cosines.diagonal()[:, None] > cosines)[others].float().mean().item()
