"""
Measures how much questions tell about their answers without an image: a language-only model, and single words.

The model is naive Bayes on words and pairs of words, together with a table of the answers to equal questions. For
multiple choice, each option has a score by itself, too. The model is cross-validated: it answers a question without
having been fitted on any turn of that row.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fusion_vlm.audit.questions import LETTERS, STOP_WORDS, Question, split_into_words


NUM_FOLDS = 5
MAX_QUESTIONS = 20_000  # drawn from a larger group: accuracies are then exact to 0.01
MAX_ANSWERS = 30  # the model chooses from the most frequent answers; rarer ones count as wrong
MIN_FEATURE_COUNT = 3
MIN_LOOKUPS = 3
SMOOTHING = 0.5


@dataclass
class LanguageOnly:
    """
    The accuracy of the language-only model on a group.

    Args:
        num (`int`): number of questions.
        accuracy (`float`), majority (`float`): shares of right answers of the model, and of the most frequent answer.
        chance (`float`): probability of such a gain, or an upper bound of it, if the texts tell nothing.
    """

    num: int
    accuracy: float
    majority: float
    chance: float

    @property
    def gain(self) -> float:
        return self.accuracy - self.majority


@dataclass
class Association:
    """
    A word (or two in a row) whose questions have the answer `answer` more often than all questions of the group.

    Args:
        word (`str`), answer (`str`)
        num (`int`): number of questions with the word.
        share (`float`), usual (`float`): share of the answer among these questions, and among all.
        chance (`float`): as in `LanguageOnly`, corrected for the number of all words.
    """

    word: str
    answer: str
    num: int
    share: float
    usual: float
    chance: float

    @property
    def excess(self) -> float:
        return self.share - self.usual

    def __str__(self) -> str:
        return f'"{self.word}" -> {self.answer}: {self.share:.2f} of {self.num}, usually {self.usual:.2f}'


class Features:
    """
    The features of each of a list of texts. All texts have the first feature, "".

    Args:
        ids (`np.ndarray`): int32, the features of the first text, of the second, and so on.
        ends (`np.ndarray`): int64, the end of each text in `ids`.
        names (`list[str]`): names of the features.
    """

    def __init__(self, ids: np.ndarray, ends: np.ndarray, names: list[str]):
        self.ids, self.ends, self.names = ids, ends, names

    @classmethod
    def build(cls, texts: Iterable[set[str]]) -> "Features":
        vocabulary, ids, ends = {"": 0}, array("i"), array("q")
        for text in texts:
            ids.append(0)
            # Sorted, because the order of a set of texts differs between processes.
            ids.extend(vocabulary.setdefault(name, len(vocabulary)) for name in sorted(text))
            ends.append(len(ids))
        return cls(np.frombuffer(ids, np.int32), np.frombuffer(ends, np.int64), list(vocabulary))

    def take(self, indices: np.ndarray) -> "Features":
        """Select texts, and drop the features that few of them have."""
        places, lengths = self._places(indices)
        ids = self.ids[places]
        kept = np.bincount(ids, minlength=len(self.names)) >= MIN_FEATURE_COUNT
        kept[0] = True
        texts = np.repeat(np.arange(len(indices)), lengths)[kept[ids]]
        new_ids = np.cumsum(kept) - 1
        ends = np.cumsum(np.bincount(texts, minlength=len(indices)))
        return Features(new_ids[ids[kept[ids]]], ends, [self.names[i] for i in np.flatnonzero(kept)])

    def counts(self, indices: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
        """Count the texts with each feature and label: float64 (features, labels). A label of -1 is not counted."""
        places, lengths = self._places(indices)
        repeated = np.repeat(labels, lengths)
        cells = (self.ids[places].astype(np.int64) * num_labels + repeated)[repeated >= 0]
        counts = np.bincount(cells, minlength=len(self.names) * num_labels)
        return counts.reshape(len(self.names), num_labels).astype(np.float64)

    def sums(self, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sum the weights (features, labels) of the features of each text: float64 (texts, labels)."""
        sums = np.empty((len(indices), weights.shape[1]))
        for first in range(0, len(indices), 1000):  # bounds the memory
            places, lengths = self._places(indices[first : first + 1000])
            starts = np.cumsum(lengths) - lengths
            sums[first : first + 1000] = np.add.reduceat(weights[self.ids[places]], starts, axis=0)
        return sums

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in `ids` of the features of these texts, and the number of features of each."""
        starts = np.concatenate([[0], self.ends[:-1]])[indices]
        lengths = self.ends[indices] - starts
        shifts = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        return np.arange(len(shifts)) + shifts, lengths


def list_features(question: Question) -> set[str]:
    """Return words and pairs of words of a question, and words of its options with their letters."""
    words = split_into_words(question.stem if question.options else question.text)
    features = set(words) | {f"{one} {two}" for one, two in zip(words, words[1:], strict=False)}
    for letter, option in zip(LETTERS, question.options, strict=False):
        features |= {f"{letter}. {word}" for word in split_into_words(option)}
    return features


def try_language_only(
    questions: list[Question], features: Features, folds: np.ndarray, labels: np.ndarray
) -> LanguageOnly:
    """
    Cross-validate the model on the questions of a group.

    Args:
        questions (`list[Question]`)
        features (`Features`): features of the questions.
        folds (`np.ndarray`): int, the fold of each question. All questions of a row should be in one fold.
        labels (`np.ndarray`): int, the answers, 0 for the most frequent; from `label_answers`.
    """
    bayes = naive_bayes(features, labels, folds, labels.max() + 1).argmax(1)
    texts = Features.build({question.text.lower()} for question in questions)
    majority = labels == 0
    looked_up, chosen = _look_up(texts, labels, folds, bayes), _choose_options(questions, folds)
    right = _choose_best(np.stack([majority, bayes == labels, looked_up == labels, chosen == labels]), folds)
    won, lost = int((right & ~majority).sum()), int((majority & ~right).sum())
    chance = float(tail(won, won + lost, 0.5))
    return LanguageOnly(len(labels), float(right.mean()), float(majority.mean()), chance)


def _choose_best(right: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """
    Select the best of several models, given the right answers of each: bool (models, texts) -> bool (texts,).

    For each fold, the model that is best on the other folds is taken. The best model in hindsight would be better than
    chance on noise.
    """
    best = np.zeros(right.shape[1], dtype=bool)
    for fold in range(NUM_FOLDS):
        held_out = folds == fold
        best[held_out] = right[right[:, ~held_out].sum(1).argmax(), held_out]
    return best


def label_answers(answers: list[str]) -> tuple[np.ndarray, list[str]]:
    """Label answers by frequency, then alphabet: int64, -1 for rare answers. Also return the answer of each label."""
    names = [name for name, _ in sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))[:MAX_ANSWERS]]
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of.get(answer, -1) for answer in answers], dtype=np.int64), names


def naive_bayes(features: Features, labels: np.ndarray, folds: np.ndarray, num_labels: int) -> np.ndarray:
    """Compute log probabilities up to a constant, for each fold from the others: float64 (texts, labels)."""
    scores = np.zeros((len(labels), num_labels))
    counts = features.counts(np.arange(len(labels)), labels, num_labels)
    for fold in range(NUM_FOLDS):
        held_out = np.flatnonzero(folds == fold)
        seen = counts - features.counts(held_out, labels[held_out], num_labels) + SMOOTHING
        weights = np.log(seen / np.maximum(seen[1:].sum(0), 1.0))
        # All texts have the first feature, so its weight is the prior.
        weights[0] = np.log(seen[0] / seen[0].sum())
        scores[held_out] = features.sums(held_out, weights)
    return scores


def _look_up(texts: Features, labels: np.ndarray, folds: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Answer with the most frequent label of the same question in other folds, else with `otherwise`: (texts,)."""
    num_labels = labels.max() + 1
    counts = texts.counts(np.arange(len(labels)), labels, num_labels)
    guesses = otherwise.copy()
    for fold in range(NUM_FOLDS):
        held_out = np.flatnonzero(folds == fold)
        seen = counts - texts.counts(held_out, labels[held_out], num_labels)
        known = seen[texts.ids[1::2][held_out]]  # (held out, labels): each text has "" and itself
        frequent = known.sum(1) >= MIN_LOOKUPS
        guesses[held_out[frequent]] = known[frequent].argmax(1)
    return guesses


def _choose_options(questions: list[Question], folds: np.ndarray) -> np.ndarray:
    """Answer with the label of the option that is most like right options of other folds: (questions,)."""
    letters, names = label_answers([question.answer for question in questions])
    rows = [i for i, question in enumerate(questions) if question.options and letters[i] >= 0]
    guesses = np.full(len(questions), -2)
    if not rows:
        return guesses
    owners = np.array([row for row in rows for _ in questions[row].options])
    places = {row: LETTERS.index(questions[row].answer) for row in rows}
    right = [int(place == places[row]) for row in rows for place in range(len(questions[row].options))]
    features = Features.build(
        _option_features(questions[row], place) for row in rows for place in range(len(questions[row].options))
    )
    features = features.take(np.arange(len(owners)))
    scores = naive_bayes(features, np.array(right), folds[owners], 2)
    odds = scores[:, 1] - scores[:, 0]
    label_of = {name: label for label, name in enumerate(names)}
    for row, values in zip(rows, np.split(odds, np.flatnonzero(np.diff(owners)) + 1), strict=True):
        guesses[row] = label_of.get(LETTERS[values.argmax()], -2)
    return guesses


def _option_features(question: Question, place: int) -> set[str]:
    """Return the features of an option: its words, its rank in length, and its words with those of the question."""
    option = question.options[place].lower()
    lengths = [len(other) for index, other in enumerate(question.options) if index != place]
    stem = set(split_into_words(question.stem)) - STOP_WORDS
    words = set(split_into_words(option))
    features = {f"={option}"} | words | {f"{word} -> {option}" for word in stem}
    features |= {">longest"} if len(option) > max(lengths) else set()
    features |= {">shortest"} if len(option) < min(lengths) else set()
    return features | ({">in the question"} if words & stem else set())


def find_associations(features: Features, labels: np.ndarray, names: list[str], min_count: int) -> list[Association]:
    """
    Find words that predict an answer, the best first.

    Args:
        features (`Features`): features of the questions.
        labels (`np.ndarray`), names (`list[str]`): labels of the answers and their names, from `label_answers`.
        min_count (`int`): least number of questions with the word.

    Returns:
        `list[Association]`: for each word, the answer whose share rises most, if the rise is significant at 5 % over
        all words.
    """
    num_texts, num_labels = len(labels), len(names)
    counts = features.counts(np.arange(num_texts), labels, num_labels)
    nums = np.bincount(features.ids, minlength=len(features.names))
    frequent = np.flatnonzero((nums >= min_count) & (nums <= num_texts - min_count))
    if not len(frequent):
        return []
    counts, nums = counts[frequent], nums[frequent, None]
    usual = np.bincount(labels[labels >= 0], minlength=num_labels) / num_texts
    chance = np.minimum(tail(counts, nums, usual) * counts.size, 1.0)
    excess = np.where(chance < 0.05, counts / nums - usual, -1.0)  # (words, answers)
    best = excess.argmax(1)
    found = [
        Association(
            word=features.names[frequent[word]],
            answer=names[best[word]],
            num=int(nums[word, 0]),
            share=float(counts[word, best[word]] / nums[word, 0]),
            usual=float(usual[best[word]]),
            chance=float(chance[word, best[word]]),
        )
        for word in np.flatnonzero(excess.max(1) > 0)
    ]
    return sorted(found, key=lambda item: (-item.excess, item.word))


def tail(counts, nums, share) -> np.ndarray:
    """
    Bound the probability of `counts` or more successes in `nums` trials, each with the probability `share`.

    The upper bound is close where it is small. Takes numbers or arrays that broadcast; returns float64.
    """
    counts, nums, share = np.broadcast_arrays(counts, nums, np.clip(share, 1e-12, 1 - 1e-12))
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(nums.max(initial=0)) + 1)))])
    counts, nums = counts.astype(np.int64), nums.astype(np.int64)
    log_first = log_factorials[nums] - log_factorials[counts] - log_factorials[nums - counts]
    log_first = log_first + counts * np.log(share) + (nums - counts) * np.log1p(-share)
    # Each further term is at most `ratio` times the previous one, so a geometric series is an upper bound.
    ratio = (nums - counts) * share / ((counts + 1) * (1 - share))
    with np.errstate(divide="ignore"):
        return np.where(ratio < 1, np.minimum(np.exp(log_first) / np.abs(1 - ratio), 1.0), 1.0)
