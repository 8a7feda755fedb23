"""The stage that has models judge the answers: one that reads the description, one that sees the image, or both."""

from collections.abc import Callable

from fusion_vlm.synthesis.agreement import IMAGE_JUDGE, TEXT_JUDGE
from fusion_vlm.synthesis.models.answers import Verdict, verdicts_on
from fusion_vlm.synthesis.models.chat import CallError, ChatClient
from fusion_vlm.synthesis.models.planted import plant_error
from fusion_vlm.synthesis.models.stages import LanguageModelStage
from fusion_vlm.synthesis.sample import Sample, Turn


# Rules of rejects by judge.
RULES = {TEXT_JUDGE: "wrong_answer", IMAGE_JUDGE: "wrong_answer_in_image"}
PROMPTS = {TEXT_JUDGE: "judge", IMAGE_JUDGE: "judge_image"}


class Judge(LanguageModelStage):
    """
    Has models check every answer; one answer that any of them finds wrong rejects the sample.

    The judge of the text is given the description, and does not see the image. The judge of the image sees the image,
    and is not given the description, so errors of the painter reach no one but this judge. Both judge all samples, so
    that `Sample.source["verdicts"]` tells how far they agree.

    `scores["judge"]` and `scores["image_judge"]` are the shares of correct answers, or `None`, not available.

    Args:
        client (`ChatClient`, *optional*), prompts (`dict[str, str]`): see the base class; judges the text.
        image_client (`ChatClient`, *optional*): the judge of the image.
        read_image (`Callable[[Sample], bytes]`, *optional*): returns the encoded image of a sample, for that judge.
        plant_share (`float`): share of the samples of which a copy with one wrong answer is judged, too. The verdicts
            on these errors stand in `Sample.source["planted"]`; the sample itself is not changed.
    """

    name = "judge"

    def __init__(
        self,
        client: ChatClient | None,
        prompts: dict[str, str],
        image_client: ChatClient | None = None,
        read_image: Callable[[Sample], bytes] | None = None,
        plant_share: float = 0.0,
    ):
        super().__init__(client, prompts)
        clients = {TEXT_JUDGE: client, IMAGE_JUDGE: image_client}
        self.clients = {judge: each for judge, each in clients.items() if each is not None}
        self.read_image, self.plant_share = read_image, plant_share

    async def run(self, sample: Sample) -> Sample:
        sample.scores |= {TEXT_JUDGE: None, IMAGE_JUDGE: None}
        verdicts: dict[str, list[Verdict]] = {}
        for judge, client in self.clients.items():
            sample.source[judge] = {"model": client.model, "prompt": f"{PROMPTS[judge]}.txt"}
            verdicts[judge] = await self.judge(judge, sample, sample.turns)
        for judge, each in verdicts.items():
            sample.scores[judge] = sum(verdict.correct for verdict in each) / len(each)
            wrong = next((number for number, verdict in enumerate(each) if not verdict.correct), None)
            if wrong is not None and sample.reason is None:
                sample.reject(self.name, f"{RULES[judge]}: turn {wrong + 1}, {each[wrong].problem}")
        if verdicts:
            lists = {judge: [verdict.correct for verdict in each] for judge, each in verdicts.items()}
            sample.source["verdicts"] = lists
            await self.try_error(sample)
        return sample

    async def judge(self, judge: str, sample: Sample, turns: list[Turn]) -> list[Verdict]:
        """Ask a judge for its verdicts on some turns about the image of a sample."""
        parts = [f"{number}. {describe_turn(turn)}" for number, turn in enumerate(turns, start=1)]
        image = self.read_image(sample) if judge == IMAGE_JUDGE else None
        if image is None:
            parts.insert(0, f"Description: {sample.description}")
        seed = sample.rng(judge).getrandbits(31)
        prompt, answer_type = self.prompts[PROMPTS[judge]], verdicts_on(len(turns))
        answer = await self.clients[judge].ask(prompt, "\n\n".join(parts), answer_type, seed, image)
        return answer.verdicts

    async def try_error(self, sample: Sample):
        """Have a copy with a wrong answer judged, if the sample is drawn and an error can be made of an answer."""
        rng = sample.rng("plant")
        if rng.random() >= self.plant_share:
            return
        places = list(range(len(sample.turns)))
        rng.shuffle(places)
        errors = ((place, plant_error(sample.turns[place], rng)) for place in places)
        place, error = next((each for each in errors if each[1] is not None), (None, None))
        if error is None:
            return
        turns = [error if number == place else turn for number, turn in enumerate(sample.turns)]
        planted = {"turn": place + 1, "answer": error.answer}
        for judge in self.clients:
            try:
                verdicts = await self.judge(judge, sample, turns)
            except CallError:  # a sample is not rejected for want of a statistic
                continue
            planted[judge] = verdicts[place].correct
        sample.source["planted"] = planted


def describe_turn(turn: Turn) -> str:
    """Write question, options and answer as text, for a judge to read."""
    parts = (f"Question: {turn.question}", turn.listed_options, f"Answer: {turn.answer}")
    return "\n".join(filter(None, parts))
