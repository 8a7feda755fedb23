"""The table of the grammar's kinds of samples."""

from fusion_vlm.small_model.grammar import captions, contrasts, conversations, multiple_choice, reasoning, text_qa
from fusion_vlm.small_model.grammar.kind import Kind


# A run takes its kinds in turn, so another order gives other samples.
_TABLE: dict[str, Kind] = {
    kind.name: kind
    for module in (captions, multiple_choice, conversations, contrasts, reasoning, text_qa)
    for kind in module.KINDS
}
KINDS = tuple(_TABLE)
CAPTION_KINDS = tuple(name for name, kind in _TABLE.items() if kind.is_caption)
INSTRUCTION_KINDS = tuple(name for name, kind in _TABLE.items() if not kind.is_caption)


def find_kind(name: str) -> Kind:
    """
    Return the record of a kind.

    Raises:
        ValueError: for an unknown kind.
    """
    if name not in _TABLE:
        raise ValueError(f"The kind is {name!r}, expected one of {', '.join(KINDS)}.")
    return _TABLE[name]
