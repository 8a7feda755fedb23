"""
The table of all kinds of samples.

To add a kind, write its two functions and its record in one of the modules imported below, two prompts in
models/prompts/, and its name in names.py. Tests and the estimate of costs then include the new kind.
"""

from fusion_vlm.synthesis.documents import kinds as pages
from fusion_vlm.synthesis.kinds import captions, contrasts, conversations, multiple_choice, reasoning, text_qa
from fusion_vlm.synthesis.kinds.kind import Kind
from fusion_vlm.synthesis.names import KINDS


_TABLE: dict[str, Kind] = {
    kind.name: kind
    for module in (captions, multiple_choice, conversations, contrasts, reasoning, text_qa, pages)
    for kind in module.KINDS
}
if tuple(_TABLE) != KINDS:
    raise ValueError(f"The modules have the kinds {', '.join(_TABLE)}, and names.py has {', '.join(KINDS)}.")
CAPTION_KINDS = tuple(name for name, kind in _TABLE.items() if kind.is_caption)
INSTRUCTION_KINDS = tuple(name for name, kind in _TABLE.items() if not kind.is_caption)
MODEL_KINDS = tuple(name for name, kind in _TABLE.items() if not kind.is_exact_only)


def find_kind(name: str) -> Kind:
    """
    Return the record of a kind.

    Raises:
        ValueError: for an unknown kind.
    """
    if name not in _TABLE:
        raise ValueError(f"The kind is {name!r}, expected one of {', '.join(KINDS)}.")
    return _TABLE[name]
