"""`fusion-vlm consolidate`: make a Hub folder of a sharded training checkpoint."""

import argparse

from fusion_vlm.hub.names import expand


DESCRIPTION = """\
Make a Hub folder of a checkpoint whose weights are split over processes, as FSDP and DeepSpeed write them.

One process, no GPU; memory for the whole model, in the dtype of the checkpoint (FSDP: that of the parameters that were
trained; DeepSpeed: float32). A checkpoint of one process or of DDP is a Hub folder already.

example:
  fusion-vlm consolidate out/stage2/checkpoint-1000 out/stage2-1000"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("checkpoint_dir", metavar="CHECKPOINT", help="a checkpoint-N of a training")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder to make; may exist if it is empty")
    parser.add_argument(
        "--base", metavar="FOLDER", help="with config and processor (default: the checkpoint, or around it)"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one file (default: 5GB)")


def run(args: argparse.Namespace):
    from fusion_vlm.training.consolidate import consolidate

    base = None if args.base is None else expand(args.base)
    checkpoint, output_dir = expand(args.checkpoint_dir), expand(args.output_dir)
    path = consolidate(checkpoint, output_dir, base=base, max_shard_size=args.max_shard_size)
    print(f"Wrote {path}")
