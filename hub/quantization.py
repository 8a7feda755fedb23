"""
The 4-bit settings that the converter, the commands, the benchmarks and the small model share.

The files that are shipped beside the weights do not import this one.
"""

import torch
from transformers import BitsAndBytesConfig


def nf4_config(
    compute_dtype: torch.dtype = torch.bfloat16, *, double_quant: bool = True, skip: list[str] | None = None
) -> BitsAndBytesConfig:
    """
    Return the settings for loading a model in 4 bits (NF4).

    Args:
        compute_dtype (`torch.dtype`): dtype of the matrix products.
        double_quant (`bool`): whether to quantize the scales of the weights, too.
        skip (`list[str]`, *optional*): modules that stay as they are; defaults to the choice of the model.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skip,
    )
