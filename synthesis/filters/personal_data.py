"""The filter for personal data: addresses, numbers and, with a language model, names, as Presidio finds them."""

import logging
from collections.abc import Iterator

from PIL import Image

from fusion_vlm.synthesis.sample import Sample


# What Presidio finds by patterns and check digits. Names of people (PERSON) need a model of spaCy.
ENTITIES = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS")
MIN_SCORE = 0.4  # as Presidio scores a telephone number
LANGUAGE = "en"
SPACY_MODEL = "en_core_web_sm"


class PersonalData:
    """
    Rejects samples whose caption, description, questions or answers hold personal data. English only.

    Args:
        entities (`str`): Presidio's names of what to look for, separated by commas; by default those of `ENTITIES`.

    Raises:
        ImportError: if Presidio is not installed, or the model that names of people need.
        ValueError: if Presidio has no such entity.
    """

    def __init__(self, entities: str = ",".join(ENTITIES)):
        try:
            from presidio_analyzer import AnalyzerEngine
        except ImportError as error:
            raise ImportError(
                "It needs Presidio, not installed. It comes with the extra `checks`: pip install 'fusion-vlm[checks]'."
            ) from error
        # It tries to fetch a newer list of domains, and prints a traceback where there is no network.
        logging.getLogger("tldextract").setLevel(logging.CRITICAL)
        self.entities = [entity.strip() for entity in entities.split(",")]
        needs_model = set(self.entities) - set(ENTITIES)
        self.engine = AnalyzerEngine(nlp_engine=_load_engine(bool(needs_model)), supported_languages=[LANGUAGE])
        if unknown := set(self.entities) - set(self.engine.get_supported_entities(LANGUAGE)):
            raise ValueError(f"Presidio finds no {', '.join(sorted(unknown))} in English.")

    def __call__(self, sample: Sample, image: Image.Image) -> str | None:
        for place, text in _list_texts(sample):
            found = self.engine.analyze(text, language=LANGUAGE, entities=self.entities, score_threshold=MIN_SCORE)
            if found:
                # The data itself would be published with the rejects, so it is not in the reason.
                first = max(found, key=lambda result: result.score)
                return f"{first.entity_type.lower()}: in the {place}, expected none"
        return None


def _list_texts(sample: Sample) -> Iterator[tuple[str, str]]:
    yield "caption", sample.caption
    yield "description", sample.description
    for number, turn in enumerate(sample.turns, start=1):
        yield f"question {number}", turn.question_with_options
        yield f"answer {number}", turn.answer


def _load_engine(needs_model: bool):
    """Load spaCy's model, or make an empty pipeline: patterns need words and no more."""
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    engine = SpacyNlpEngine(models=[{"lang_code": LANGUAGE, "model_name": SPACY_MODEL}])
    if not needs_model:
        engine.nlp = {LANGUAGE: spacy.blank(LANGUAGE)}  # Presidio's own loading would download a model
    elif spacy.util.is_package(SPACY_MODEL):
        engine.load()
    else:
        raise ImportError(f"Names need spaCy's model {SPACY_MODEL}: python -m spacy download {SPACY_MODEL}.")
    return engine
