"""The stage that has a language model reword exact questions and answers, and keeps what says the same."""

from fusion_vlm.synthesis.filters.rewrites import check_rewrite
from fusion_vlm.synthesis.models.answers import rewrites_of
from fusion_vlm.synthesis.models.retries import CallError
from fusion_vlm.synthesis.models.stages import LanguageModelStage
from fusion_vlm.synthesis.sample import Sample, Turn


class Rewrite(LanguageModelStage):
    """
    Rewords the turns of an exact sample.

    Options, letters and hints at the form of an answer are not sent, and stay as they are. So do answers in a word or
    a number. A rewording that changes a fact is dropped, and so is a call without a valid answer: the turn keeps its
    exact wording. `source["rewrite"]` has the number of reworded turns, and by turn the reason for each other one.
    """

    name = "rewrite"

    async def run(self, sample: Sample) -> Sample:
        parts = [split_turn(turn) for turn in sample.turns]
        try:
            texts = [describe_pair(number, exact) for number, (exact, _) in enumerate(parts, start=1)]
            answer = await self.ask(sample, self.name, "\n\n".join(texts), rewrites_of(len(parts)))
        except CallError as error:
            sample.source[self.name] |= {"reworded": 0, "kept": {"all": str(error)}}
            return sample
        kept = {}
        for index, (turn, (exact, rest), rewrite) in enumerate(zip(sample.turns, parts, answer.turns, strict=True)):
            kept_answer = is_short(exact)
            written = exact.answer if kept_answer else rewrite.answer
            reason = check_rewrite(exact, rewrite.question, written)
            if reason is None:
                turn.question, turn.answer = rewrite.question + rest, turn.answer if kept_answer else written
            else:
                kept[str(index + 1)] = reason
        sample.source[self.name] |= {"reworded": len(parts) - len(kept), "kept": kept}
        return sample


def split_turn(turn: Turn) -> tuple[Turn, str]:
    """Return a turn with the first line of its question, and the rest of the question: options and hints."""
    question, newline, rest = turn.question.partition("\n")
    return Turn(question, turn.answer, turn.type), newline + rest


def is_short(turn: Turn) -> bool:
    """Check whether an answer is a letter, a word or a phrase and not a sentence."""
    return not turn.answer.endswith((".", "!")) or len(turn.answer.split()) < 3


def describe_pair(number: int, turn: Turn) -> str:
    """Write a pair as text, for a model to reword. A short answer is named as one that stays."""
    label = "Answer (keep it)" if is_short(turn) else "Answer"
    return f"{number}. Question: {turn.question}\n{label}: {turn.answer}"
