"""`fusion-vlm convert`: make a Hub folder of a released checkpoint, and upload it if wanted."""

import argparse
import json
import logging

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.options import DTYPES
from fusion_vlm.hub.names import find_model


DESCRIPTION = """\
Convert a released FUSION checkpoint to a folder that the other commands, and transformers, load: safetensors, configs,
tokenizer, code and model card. Tensors are copied one by one, so that it needs little more memory than one output
shard, and the folder is put in its place only when it is complete.

example:
  fusion-vlm convert starriver030515/FUSION-Phi3.5-3B out/fusion-phi3.5-3b"""


def parse_override(text: str) -> tuple[str, object]:
    """Parse `key=value`; the value is JSON, or a text."""
    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("source", help="folder of a released checkpoint, or the id of its Hub repository")
    parser.add_argument("output_dir", help="folder to make; may exist if it is empty")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the written tensors (default: that of the source)")
    parser.add_argument("--max-shard-size", default="5GB", help="of one file, and bound of the memory (default: 5GB)")
    parser.add_argument("--quantize", choices=["nf4"], help="write 4-bit weights for bitsandbytes")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--token", help="Hub token (default: the one of `hf auth login`)")
    parser.add_argument("--copy-of", metavar="ID", help="Hub id of the checkpoint that a local source is a copy of")
    parser.add_argument(
        "--vision-tower",
        metavar="NAME",
        help="SigLIP tower, where the config has only a path, such as google/siglip-so400m-patch14-384",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        type=parse_override,
        default=[],
        help="fields of the released config to replace or to add, such as window_size=3",
    )
    parser.add_argument("--verify", action="store_true", help="check the output as `fusion-vlm verify` does")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the folder to this repository, private if new")
    parser.add_argument("--public", action="store_true", help="push to a public repository")


def run(args: argparse.Namespace):
    if args.public and not args.push_to_hub:
        raise UsageError("--public needs --push-to-hub")
    source = find_model(args.source, token=args.token)
    from huggingface_hub import HfApi

    from fusion_vlm import convert_checkpoints
    from fusion_vlm.hub.push import prepare_repository, upload

    api, repo_id = HfApi(token=args.token), None
    if args.push_to_hub:
        # First, because a conversion takes long and a name or token may be wrong.
        repo_id = prepare_repository(api, args.push_to_hub, public=args.public)
    notices = logging.StreamHandler()
    convert_checkpoints.logger.addHandler(notices)
    try:
        output_dir = convert_checkpoints.convert(
            source,
            args.output_dir,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            quantize=args.quantize,
            revision=args.revision,
            token=args.token,
            copy_of=args.copy_of,
            repo_id=repo_id,
            vision_tower=args.vision_tower,
            overrides=dict(args.overrides),
        )
    finally:
        convert_checkpoints.logger.removeHandler(notices)
    print(f"Wrote {output_dir}")
    if args.verify:
        from fusion_vlm.verification.verify import verify

        if not verify(output_dir, trust_remote_code=True):
            raise ValueError(f"{output_dir} did not pass the check above")
    if repo_id:
        upload(api, repo_id, output_dir)
        print(f"Uploaded to {repo_id}")
