"""The stages that ask a language model: describe the image, ask questions from the description, judge the answers."""

from fusion_vlm.synthesis.kinds.contrasts import join_sides
from fusion_vlm.synthesis.kinds.table import find_kind
from fusion_vlm.synthesis.models.answers import (
    Answer,
    ContrastDescription,
    Description,
    questions_type,
    verdicts_on,
)
from fusion_vlm.synthesis.models.chat import ChatClient
from fusion_vlm.synthesis.models.retries import CallError
from fusion_vlm.synthesis.sample import Sample, Turn


class LanguageModelStage:
    """
    Base class of the stages below. A call that failed after all tries rejects its sample, with the error as reason.

    Args:
        client (`ChatClient`, *optional*): or another object with `model` and `ask`. Only the judge works without.
        prompts (`dict[str, str]`): from `load_prompts`.
    """

    name: str

    def __init__(self, client: ChatClient | None, prompts: dict[str, str]):
        self.client, self.prompts = client, prompts

    async def __call__(self, sample: Sample) -> Sample:
        try:
            return await self.run(sample)
        except CallError as error:
            sample.reject(self.name, str(error))
            return sample

    async def run(self, sample: Sample) -> Sample:
        raise NotImplementedError

    async def ask(self, sample: Sample, prompt: str, text: str, answer_type: type[Answer]) -> Answer:
        """Ask the model, and record model and prompt in `sample.source`."""
        sample.source[self.name] = {"model": self.client.model, "prompt": f"{prompt}.txt"}
        # A model that is asked again after answers that were not valid gets other seeds than before.
        num_retries = sample.source.get("num_retries", 0)
        rng = sample.rng(f"{self.name}, retry {num_retries}" if num_retries else self.name)
        return await self.client.ask(self.prompts[prompt], text, answer_type, rng.getrandbits(31))


class Describe(LanguageModelStage):
    """Writes `description`, in detail, from the caption, or from the exact facts if the sample has a scene."""

    name = "describe"

    async def run(self, sample: Sample) -> Sample:
        prompt, given = f"describe_{sample.kind}", sample.description or sample.caption
        if find_kind(sample.kind).has_two_images:
            answer = await self.ask(sample, prompt, given, ContrastDescription)
            sample.description = join_sides(answer.left, answer.right)
        else:
            sample.description = (await self.ask(sample, prompt, given, Description)).description
        return sample


class AskFromDescription(LanguageModelStage):
    """Writes `turns` of the sample's kind from its description."""

    name = "ask"

    async def run(self, sample: Sample) -> Sample:
        kind = find_kind(sample.kind)
        answer = await self.ask(sample, f"ask_{kind.name}", sample.description, questions_type(kind.answer))
        for index, turn in enumerate(answer.turns):
            sample.turns.append(turn.to_turn(kind.turn_type, sample.rng(f"options {index}")))
        return sample


class Judge(LanguageModelStage):
    """
    Has a model check every answer against the description; one wrong answer rejects the sample.

    `scores["judge"]` is the share of correct answers, or `None`, not available, without a client.
    """

    name = "judge"

    async def run(self, sample: Sample) -> Sample:
        sample.scores[self.name] = None
        if self.client is None:
            return sample
        turns = [f"{number}. {describe_turn(turn)}" for number, turn in enumerate(sample.turns, start=1)]
        text = "\n\n".join([f"Description: {sample.description}", *turns])
        answer = await self.ask(sample, "judge", text, verdicts_on(len(sample.turns)))
        wrong = [number for number, verdict in enumerate(answer.verdicts, start=1) if not verdict.correct]
        sample.scores[self.name] = 1 - len(wrong) / len(answer.verdicts)
        if wrong:
            problem = answer.verdicts[wrong[0] - 1].problem
            sample.reject(self.name, f"wrong_answer: turn {wrong[0]}, {problem}")
        return sample


def describe_turn(turn: Turn) -> str:
    """Write question, options and answer as text, for a judge to read."""
    parts = (f"Question: {turn.question}", turn.listed_options, f"Answer: {turn.answer}")
    return "\n".join(filter(None, parts))
