"""The former place of `fusion_vlm.rows.messages`; goes with the next release."""

import warnings

from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.messages import load_image, to_messages


__all__ = ["RowError", "load_image", "to_messages"]

warnings.warn(
    "`fusion_vlm.training.messages` has moved to `fusion_vlm.rows.messages`; `to_messages` is in `fusion_vlm` itself.",
    FutureWarning,
    stacklevel=2,
)
