"""Notes on the licenses of what a data set was made with. They point to the texts, and are no legal advice."""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import DatasetCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx


class Terms(NamedTuple):
    """A pattern of model names, and the note on data that such a model has made."""

    pattern: str
    note: str


# The first pattern that is found in a name holds.
TERMS = (
    Terms(r"flux\W?1?\W*(schnell|.*apache)", "FLUX.1-schnell is under Apache 2.0, which asks nothing of its images."),
    Terms(
        r"flux",
        "FLUX.1-dev is under the FLUX.1-dev Non-Commercial License: the model may be run for non-commercial purposes"
        " only, and its images may not be used to train a model that competes with it. Other FLUX models have other"
        " terms.",
    ),
    Terms(
        r"llama\W?3[._][1-9]|llama\W?[4-9]",
        "The Llama Community License (3.1 and later) asks of a model that is trained on Llama's output and passed on:"
        ' the name begins with "Llama", and "Built with Llama" is shown. Its acceptable use policy holds, too.',
    ),
    Terms(
        r"llama",
        "The licenses of Llama 2 and 3 do not allow output of the model to improve other language models; that of 3.1"
        " and later does, with conditions. The name does not say which one this is.",
    ),
)


def note_license(model: str) -> str | None:
    """Return the note on a model by its name, or None for a model without one. Its own license holds in any case."""
    return next((terms.note for terms in TERMS if re.search(terms.pattern, model.lower())), None)


def find_data_license(source: str) -> str | None:
    """
    Find the license that the card of a data set names.

    Args:
        source (`str`): a folder with a card, a file in one, or the name of a data set on the Hub.

    Returns:
        `str`, *optional*: an identifier such as `cc-by-4.0`; None if there is no card, or if the card names none.
    """
    path = Path(source)
    card = (path if path.is_dir() else path.parent) / "README.md"
    if path.exists() and not card.is_file():
        return None
    try:
        found = DatasetCard.load(card if path.exists() else source).data.to_dict().get("license")
    except (OSError, ValueError, HFValidationError, httpx.HTTPError):  # offline, or no card
        return None
    return ", ".join(found) if isinstance(found, list) else found
