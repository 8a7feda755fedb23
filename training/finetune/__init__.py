"""
Fine-tunes a FUSION on a table of images, questions and answers, and writes a folder that loads like any other.

    fusion-vlm finetune MODEL table.csv --output out/mine

`finetune` does all of it: it checks the table, holds rows out, trains adapters or all weights, measures before and
after, and saves. docs/finetune.md has an example and all options.
"""

from fusion_vlm.training.finetune.run import finetune


__all__ = ["finetune"]
