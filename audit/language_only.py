"""
Measures how much questions tell about their answers without an image: a language-only model, and single words.

The model is scikit-learn's naive Bayes on words and pairs of words, together with a table of the answers to equal
questions. For multiple choice, each option has a score by itself, too. The model is cross-validated: it answers a
question without having been fitted on any turn of that row.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.naive_bayes import MultinomialNB

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
        chance (`float`): probability of such a gain if the texts tell nothing.
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


def count_features(items: Iterable, list_features: Callable[..., set[str]]) -> tuple[csr_matrix, np.ndarray]:
    """
    Count the features that several items have.

    Args:
        items (`Iterable`), list_features (`Callable`): items, and a function that returns the features of an item.

    Returns:
        `csr_matrix` of shape `(items, features)`, 0 or 1; and `np.ndarray` of shape `(features,)`, their names.
    """
    # Of each item, the empty feature, too: without any feature, the vectorizer would raise an error.
    vectorizer = CountVectorizer(analyzer=lambda item: ["", *list_features(item)], binary=True)
    counts, names = vectorizer.fit_transform(items), vectorizer.get_feature_names_out()
    kept = (np.asarray(counts.sum(axis=0)).ravel() >= MIN_FEATURE_COUNT) & (names != "")
    return counts[:, kept], names[kept]


def list_features(question: Question) -> set[str]:
    """Return words and pairs of words of a question, and words of its options with their letters."""
    words = split_into_words(question.stem if question.options else question.text)
    features = set(words) | {f"{one} {two}" for one, two in zip(words, words[1:], strict=False)}
    for letter, option in zip(LETTERS, question.options, strict=False):
        features |= {f"{letter}. {word}" for word in split_into_words(option)}
    return features


class KnownQuestions(ClassifierMixin, BaseEstimator):
    """
    A table of the answers to equal questions.

    Naive Bayes adds up what single words tell, so it cannot learn an answer that depends on two words together.

    An input is `(question, guess)`: the index of the question's text, and the answer in case the table has none.
    """

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> "KnownQuestions":
        self.classes_, counts = np.unique(labels), defaultdict(Counter)
        for (question, _), label in zip(inputs, labels, strict=True):
            counts[question][label] += 1
        known = {question: answers for question, answers in counts.items() if answers.total() >= MIN_LOOKUPS}
        self.answers_ = {question: max(sorted(answers), key=answers.get) for question, answers in known.items()}
        return self

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return np.array([self.answers_.get(question, guess) for question, guess in inputs])


def try_language_only(questions: list[Question], features: csr_matrix, folds: np.ndarray) -> LanguageOnly:
    """
    Cross-validate the model on the questions of a group.

    Args:
        questions (`list[Question]`)
        features (`csr_matrix` of shape `(questions, features)`): from `count_features` with `list_features`.
        folds (`np.ndarray`): int, the fold of each question. All questions of a row should be in one fold.
    """
    labels, names = label_answers([question.answer for question in questions])
    known = labels >= 0  # rare answers count as wrong, whatever a model answers
    texts = np.unique([question.text.lower() for question in questions], return_inverse=True)[1]
    guesses = np.zeros((3, len(labels)), dtype=np.int64)  # (models, questions)
    guesses[0, known] = _predict(MultinomialNB(alpha=SMOOTHING), features[known], labels[known], folds[known])
    inputs = np.stack([texts, guesses[0]], axis=1)[known]
    guesses[1, known] = _predict(KnownQuestions(), inputs, labels[known], folds[known])
    guesses[2] = _choose_options(questions, folds, labels, names)
    majority = labels == 0
    right = _choose_best(np.concatenate([majority[None], (guesses == labels) & known]), folds)
    won, lost = int((right & ~majority).sum()), int((majority & ~right).sum())
    chance = float(tail(won, won + lost, 0.5))
    return LanguageOnly(len(labels), float(right.mean()), float(majority.mean()), chance)


def _predict(model: ClassifierMixin, inputs: csr_matrix | np.ndarray, labels: np.ndarray, folds: np.ndarray):
    """Answer the questions of each fold with a model of the other folds; with 0 where there is nothing to learn."""
    if inputs.shape[1] == 0 or len(np.unique(folds)) < 2:
        return np.zeros(len(labels), dtype=np.int64)
    return cross_val_predict(model, inputs, labels, cv=PredefinedSplit(folds))


def _choose_best(right: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """
    Select the best of several models, given the right answers of each: bool (models, texts) -> bool (texts,).

    For each fold, the model that is best on the other folds is taken. The best model in hindsight would be better than
    chance on noise.
    """
    best = np.zeros(right.shape[1], dtype=bool)
    for train, held_out in PredefinedSplit(folds).split():
        best[held_out] = right[right[:, train].sum(1).argmax(), held_out]
    return best


def label_answers(answers: list[str]) -> tuple[np.ndarray, list[str]]:
    """Label answers by frequency, then alphabet: int64, -1 for rare answers. Also return the answer of each label."""
    names = [name for name, _ in sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0]))[:MAX_ANSWERS]]
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of.get(answer, -1) for answer in answers], dtype=np.int64), names


def _choose_options(questions: list[Question], folds: np.ndarray, labels: np.ndarray, names: list[str]) -> np.ndarray:
    """Answer with the label of the option most like right options of other folds: (questions,), -1 for none."""
    rows = [i for i, question in enumerate(questions) if question.options and labels[i] >= 0]
    guesses = np.full(len(questions), -1)
    owners = np.array([row for row in rows for _ in questions[row].options], dtype=np.int64)
    if len(np.unique(folds[owners])) < 2:
        return guesses
    options = [(questions[row], place) for row in rows for place in range(len(questions[row].options))]
    right = np.array([question.answer == LETTERS[place] for question, place in options])
    features, _ = count_features(options, _option_features)
    if features.shape[1] == 0:
        return guesses
    model, split = MultinomialNB(alpha=SMOOTHING), PredefinedSplit(folds[owners])
    log_probs = cross_val_predict(model, features, right, cv=split, method="predict_log_proba")
    odds = log_probs[:, 1] - log_probs[:, 0]
    label_of = {name: label for label, name in enumerate(names)}
    for row, values in zip(rows, np.split(odds, np.flatnonzero(np.diff(owners)) + 1), strict=True):
        guesses[row] = label_of.get(LETTERS[values.argmax()], -1)
    return guesses


def _option_features(option: tuple[Question, int]) -> set[str]:
    """Return the features of an option: its words, its rank in length, and its words with those of the question."""
    question, place = option
    text = question.options[place].lower()
    lengths = [len(other) for index, other in enumerate(question.options) if index != place]
    stem = set(split_into_words(question.stem)) - STOP_WORDS
    words = set(split_into_words(text))
    features = {f"={text}"} | words | {f"{word} -> {text}" for word in stem}
    features |= {">longest"} if len(text) > max(lengths) else set()
    features |= {">shortest"} if len(text) < min(lengths) else set()
    return features | ({">in the question"} if words & stem else set())


def find_associations(
    features: csr_matrix, feature_names: np.ndarray, answers: list[str], min_count: int
) -> list[Association]:
    """
    Find words that predict an answer, the best first.

    Args:
        features (`csr_matrix`), feature_names (`np.ndarray`): from `count_features`.
        answers (`list[str]`): answers of the questions.
        min_count (`int`): least number of questions with the word.

    Returns:
        `list[Association]`: for each word, the answer whose share rises most, if the rise is significant at 5 % over
        all words.
    """
    labels, names = label_answers(answers)
    num_texts, num_labels = len(labels), len(names)
    nums = np.asarray(features.sum(axis=0)).ravel()
    frequent = np.flatnonzero((nums >= min_count) & (nums <= num_texts - min_count))
    if not len(frequent):
        return []
    has_label = (labels[:, None] == np.arange(num_labels)).astype(np.float64)  # (texts, answers)
    counts, nums = features[:, frequent].T @ has_label, nums[frequent, None]
    usual = has_label.mean(axis=0)
    chance = np.minimum(tail(counts, nums, usual) * counts.size, 1.0)
    excess = np.where(chance < 0.05, counts / nums - usual, -1.0)  # (words, answers)
    best = excess.argmax(1)
    found = [
        Association(
            word=str(feature_names[frequent[word]]),
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
    """Return the probability of `counts` or more successes in `nums` trials, each with the probability `share`."""
    return binom.sf(np.asarray(counts) - 1, nums, share)
