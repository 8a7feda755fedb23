"""
Training on two processes (CPU, gloo) gives the result of one process.

DDP, FSDP2 and DeepSpeed, also where the processes hold different modalities; sharded checkpoints; the launch files.
"""

import contextlib
import copy
import os
import re
import shutil
import socket
import sys
from datetime import timedelta
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, fsdp2_canonicalize_names
from accelerate.utils.fsdp_utils import fsdp2_apply_ac, fsdp2_prepare_model
from torch import distributed
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer

from fusion_vlm.commands.main import main
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.training.collator import FusionDataCollator
from fusion_vlm.training.consolidate import consolidate
from fusion_vlm.training.train import save_model
from fusion_vlm.training.trainer import LOSS_PARTS, FusionTrainer, FusionTrainingArguments

from ..helpers import ROOT, make_messages
from ..tiny import random_image


LAUNCH_FILES = {path.stem: path for path in sorted((ROOT / "training/recipes/launch").glob("*.yaml"))}
NUM_PROCESSES = 2
COLLECTIVE_TIMEOUT, TIMEOUT = 30, 300  # seconds: a process that waits for another in vain fails, instead of hanging
ANSWERS = ["Red.", "A blue cube, far behind the others.", "Three of them.", "No, not at all, none of them is."]

# Which rows have an image: with batches of 2, of rank 0, rank 1, rank 0 ... in turn.
MIXED = [True, False, True, True, False, True, True, False]
TEXT_ON_RANK_1 = [True, True, False, False] * 2
TEXT_ONLY = [False] * 8
DDP_CASES = {
    "mixed": (MIXED, {"save_strategy": "steps"}),
    "plain-trainer": (MIXED, {"trainer_class": Trainer}),
    "grouped": (MIXED, {"group_by_modality_length": True, "max_steps": 3}),
    "text-on-rank-1": (TEXT_ON_RANK_1, {}),
    "checkpointing": (TEXT_ON_RANK_1, {"activation_checkpointing": True}),
    "text-only": (TEXT_ONLY, {}),
}
# The rows of rank 0 and of rank 1.
FSDP_CASES = {
    "image-text": [[True], [False]],
    "mixed-text": [[True, False], [False, False]],
    "text-mixed": [[False], [True, False]],
}


# ---- What runs in the processes ----


class Rows(list):
    """With what `group_by_modality_length` asks for."""

    def __init__(self, has_images: list[bool]):
        super().__init__()
        self.has_images = has_images
        for index, has_image in enumerate(has_images):
            turns = [f"What is number {index}?", ANSWERS[index % 4]] * (1 + index % 2)
            self.append({"messages": make_messages(turns, random_image(index) if has_image else None)})
        self.lengths = [index % 3 for index in range(len(self))]


def make_trainer(
    folder: Path, output_dir: Path, has_images: list[bool], *, trainer_class=FusionTrainer, **values
) -> Trainer:
    """Build a trainer of two steps of 8 rows. SGD changes weights as much as their gradients differ."""
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "sequential",
        "optim": "sgd",
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "save_steps": 1,
        # As strict as it gets: a parameter without a gradient is an error.
        "ddp_find_unused_parameters": False,
    }
    processor = FusionProcessor.from_pretrained(folder)
    return trainer_class(
        FusionForConditionalGeneration.from_pretrained(folder),
        FusionTrainingArguments(
            str(output_dir), use_cpu=True, report_to="none", disable_tqdm=True, **{**options, **values}
        ),
        data_collator=FusionDataCollator(processor, latent_grid_sizes=[2]),
        train_dataset=Rows(has_images),
        processing_class=processor,
    )


def read_logs(trainer: Trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def train_ddp(rank: int, folder: Path, output_dir: Path):
    for name, (has_images, options) in DDP_CASES.items():
        trainer = make_trainer(folder, output_dir / name, has_images, **options)
        trainer.train()
        if rank == 0:
            torch.save((read_logs(trainer), trainer.model.state_dict()), output_dir / f"{name}.pt")


def launch_settings(name: str, section: str) -> dict:
    return yaml.safe_load(LAUNCH_FILES[name].read_text())[section]


def fsdp_plugin(**changes) -> FullyShardedDataParallelPlugin:
    """Return the plugin that accelerate makes of the environment of `accelerate launch` and the launch file."""
    for key, value in {**launch_settings("fsdp2", "fsdp_config"), **changes}.items():
        os.environ[key.upper()] = str(value)
    return FullyShardedDataParallelPlugin()


def shard(model: FusionForConditionalGeneration, checkpointing: str | None, mixed_precision: str):
    """Apply FSDP2 like `Accelerator.prepare`, which applies it on accelerators only."""
    plugin = fsdp_plugin(fsdp_activation_checkpointing=checkpointing == "accelerate")
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    plugin.set_auto_wrap_policy(model)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision=mixed_precision, is_main_process=True, device="cpu"
    )
    if plugin.activation_checkpointing:
        model = fsdp2_apply_ac(accelerator, model)
    return fsdp2_prepare_model(accelerator, model)


def compute_gradients(model, batches: list[dict], scale: float = 1.0) -> torch.Tensor:
    """Return the loss of batches, which are a part of a step; the gradients stay in the parameters."""
    loss = sum(model(**batch).loss for batch in batches)
    (scale * loss).backward()
    return loss.detach()


def compute_sharded_gradients(rank: int, folder: Path, checkpointing: str | None, mixed_precision: str):
    """FSDP2 on the batch of each process, one case after the other."""
    cases = torch.load(folder / "batches.pt", weights_only=False)
    model = FusionForConditionalGeneration.from_pretrained(folder).train()
    if checkpointing == "transformers":
        model.activation_checkpointing_enable()
    model = shard(model, checkpointing, mixed_precision)
    autocast = torch.autocast("cpu", torch.bfloat16) if mixed_precision == "bf16" else contextlib.nullcontext()
    results = {}
    for name, batches in cases.items():
        model.zero_grad()
        with autocast:
            # FSDP takes the mean of the processes' gradients.
            loss = compute_gradients(model, [batches[rank]], scale=NUM_PROCESSES)
        distributed.all_reduce(loss)
        gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
        results[name] = loss, fsdp2_canonicalize_names(gradients)
    if rank == 0:
        torch.save(results, folder / "gradients.pt")


def train_sharded(rank: int, folder: Path, output_dir: Path):
    """Train with FSDP2, which accelerate must be told to use without an accelerator; also resume."""
    for name, checkpoint in {"whole": None, "resumed": str(output_dir / "whole" / "checkpoint-1")}.items():
        trainer = make_trainer(
            folder, output_dir / name, TEXT_ON_RANK_1, activation_checkpointing=True, save_strategy="steps"
        )
        trainer.accelerator.state.distributed_type = DistributedType.FSDP
        trainer.accelerator.state.fsdp_plugin = fsdp_plugin()
        trainer.is_fsdp_enabled = True
        trainer.train(resume_from_checkpoint=checkpoint)
        save_model(trainer, trainer.model)
        if rank == 0:
            torch.save(read_logs(trainer), output_dir / f"{name}.pt")


def train_deepspeed(rank: int, folder: Path, output_dir: Path, stage: int):
    """Train in the environment that `accelerate launch` sets up from the launch file."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    settings = launch_settings(f"zero{stage}", "deepspeed_config")
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(settings["zero_stage"])
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] = str(settings.get("zero3_save_16bit_model", False))
    os.environ["ACCELERATE_GRADIENT_CLIPPING"] = str(settings["gradient_clipping"])
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(settings["gradient_accumulation_steps"])
    trainer = make_trainer(
        folder, output_dir, TEXT_ON_RANK_1, activation_checkpointing=stage == 3, save_strategy="steps", save_steps=2
    )
    # Small parameters would not be split.
    plugin = trainer.accelerator.state.deepspeed_plugin
    plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    trainer.train()
    if rank == 0:
        torch.save(read_logs(trainer), output_dir / "logs.pt")


def enter(rank: int, port: int, worker, args: tuple):
    """Set up the environment of torchrun and run the worker."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_PROCESSES, "MASTER_PORT": port}.items():
        os.environ[name] = str(value)
    os.environ["LOCAL_WORLD_SIZE"], os.environ["MASTER_ADDR"] = str(NUM_PROCESSES), "localhost"
    distributed.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT))
    worker(rank, *args)
    distributed.destroy_process_group()


def launch(worker, *args):
    """Run `worker(rank, *args)` in two processes; fail if a process fails or does not end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    # A server imports this module once, without threads, and forks the processes.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        # The server starts at the first call and keeps its environment.
        for name, value in {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        processes = torch.multiprocessing.start_processes(
            enter, (port, worker, args), nprocs=NUM_PROCESSES, join=False, start_method="forkserver"
        )
    deadline = monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        if monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"{worker.__name__} did not end within {TIMEOUT} seconds.")


# ---- Tests ----


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    """Return the folder of the tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def assert_same_tensors(actual: dict, expected: dict, rtol: float = 1e-5, atol: float = 1e-6):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_logs(actual: list[dict], expected: list[dict]):
    assert len(actual) == len(expected) > 0
    for entry, other in zip(actual, expected, strict=True):
        for name in ("loss", "grad_norm", *(part for part in LOSS_PARTS if part in other)):
            assert entry[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


@pytest.fixture(scope="module")
def ddp_trainings(folder, tmp_path_factory) -> Path:
    """Return the folder with logs, weights and outputs of all cases."""
    output_dir = tmp_path_factory.mktemp("ddp")
    launch(train_ddp, folder, output_dir)
    return output_dir


@pytest.mark.parametrize("case", DDP_CASES)
def test_ddp_equals_one_process_with_twice_the_batch(case, ddp_trainings, folder, tmp_path):
    """Numbers of labels are uneven, and there are cases in which one process or both have no image."""
    has_images, options = DDP_CASES[case]
    trainer = make_trainer(
        folder, tmp_path, has_images, **{**options, "per_device_train_batch_size": 4, "save_strategy": "no"}
    )
    trainer.train()
    logs, weights = torch.load(ddp_trainings / f"{case}.pt")
    assert_same_logs(logs, read_logs(trainer))
    assert_same_tensors(weights, trainer.model.state_dict())


def test_ddp_checkpoint_is_a_hub_folder(ddp_trainings):
    checkpoint = ddp_trainings / "mixed" / "checkpoint-2"
    loaded = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True)
    assert_same_tensors(loaded.state_dict(), torch.load(ddp_trainings / "mixed.pt")[1], atol=0)
    AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)


@pytest.fixture(scope="module")
def batches(processor, folder) -> dict[str, list[dict]]:
    """Return the batches of both ranks in each case. They differ in modality, number of rows and length."""
    collator = FusionDataCollator(processor, latent_grid_sizes=[2])
    images, texts = Rows([True] * 4), Rows([False] * 4)
    cases = {
        name: [
            dict(collator([(images if image else texts)[2 * rank + index] for index, image in enumerate(has_images)]))
            for rank, has_images in enumerate(ranks)
        ]
        for name, ranks in FSDP_CASES.items()
    }
    for ranks in cases.values():
        num_labels = sum((batch["labels"] != -100).sum().item() for batch in ranks)
        for batch in ranks:
            batch["num_items_in_batch"] = num_labels
    torch.save(cases, folder / "batches.pt")
    return cases


@pytest.mark.parametrize(
    "checkpointing", [*(pytest.param(name, marks=pytest.mark.slow) for name in (None, "transformers")), "accelerate"]
)
def test_fsdp2_equals_one_process(checkpointing, batches, model, folder):
    """The loss and all gradients are compared."""
    launch(compute_sharded_gradients, folder, checkpointing, "no")
    results = torch.load(folder / "gradients.pt")
    model = copy.deepcopy(model).train()
    for case in FSDP_CASES:
        model.zero_grad()
        torch.testing.assert_close(results[case][0], compute_gradients(model, batches[case]))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert_same_tensors(results[case][1], gradients, rtol=1e-4)


@pytest.mark.slow
def test_fsdp2_in_mixed_precision(batches, model, folder):
    """The launch file asks for bfloat16."""
    assert yaml.safe_load(LAUNCH_FILES["fsdp2"].read_text())["mixed_precision"] == "bf16"
    launch(compute_sharded_gradients, folder, "transformers", "bf16")
    for case, (loss, _) in torch.load(folder / "gradients.pt").items():
        expected = compute_gradients(copy.deepcopy(model).train(), batches[case])
        torch.testing.assert_close(loss.float(), expected, rtol=0.02, atol=0)


@pytest.fixture(scope="module")
def sharded_trainings(folder, tmp_path_factory) -> Path:
    """Return logs and outputs of `FusionTrainer` on FSDP2, with sharded weights saved after each of two steps."""
    output_dir = tmp_path_factory.mktemp("sharded")
    launch(train_sharded, folder, output_dir)
    return output_dir


@pytest.fixture(scope="module")
def one_process(folder, tmp_path_factory) -> Trainer:
    """Return the trainer of the same training on one process."""
    trainer = make_trainer(
        folder,
        tmp_path_factory.mktemp("one"),
        TEXT_ON_RANK_1,
        per_device_train_batch_size=4,
        save_strategy="steps",
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["whole", "resumed"])
def test_fsdp2_trainer_equals_one_process(name, sharded_trainings, one_process, folder, tmp_path):
    assert_same_logs(torch.load(sharded_trainings / f"{name}.pt"), read_logs(one_process))
    consolidated = consolidate(sharded_trainings / name / "checkpoint-2", tmp_path / "out", base=folder)
    weights = FusionForConditionalGeneration.from_pretrained(consolidated).state_dict()
    assert_same_tensors(weights, one_process.model.state_dict())


def test_trained_on_fsdp2_the_output_folder_is_a_hub_folder(sharded_trainings, one_process):
    model = AutoModelForImageTextToText.from_pretrained(sharded_trainings / "whole", trust_remote_code=True)
    assert_same_tensors(model.state_dict(), one_process.model.state_dict())
    AutoProcessor.from_pretrained(sharded_trainings / "whole", trust_remote_code=True)


def test_sharded_checkpoint_consolidates_to_a_hub_folder(sharded_trainings, folder, tmp_path, capsys):
    checkpoint, output_dir = sharded_trainings / "whole" / "checkpoint-2", tmp_path / "out"
    assert not list(checkpoint.glob("*.safetensors"))
    main(["consolidate", str(checkpoint), str(output_dir), "--base", str(folder), "--max-shard-size", "100KB"])
    assert capsys.readouterr().out.endswith(f"Wrote {output_dir}\n")
    assert len(list(output_dir.glob("model-*.safetensors"))) > 1
    assert {path.name for path in folder.glob("*.jinja")} | {"generation_config.json"} <= set(os.listdir(output_dir))
    model = AutoModelForImageTextToText.from_pretrained(output_dir, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(output_dir, trust_remote_code=True)
    batch = FusionDataCollator(processor, latent_grid_sizes=[2])(Rows([True, False]))
    assert model(**batch).loss.isfinite()


def test_consolidate_takes_checkpoints_of_one_process(one_process, tmp_path):
    checkpoint = Path(one_process.args.output_dir, "checkpoint-2")
    loaded = FusionForConditionalGeneration.from_pretrained(consolidate(checkpoint, tmp_path / "out"))
    assert_same_tensors(loaded.state_dict(), one_process.model.state_dict(), atol=0)
    assert not (tmp_path / "out" / "optimizer.pt").exists()


def test_consolidate_finds_the_config_around_the_checkpoint(sharded_trainings, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "training")
    checkpoint = tmp_path / "training" / "checkpoint-2"
    checkpoint.symlink_to(sharded_trainings / "whole" / "checkpoint-2")
    assert (consolidate(checkpoint, tmp_path / "out") / "tokenizer.json").exists()


def test_consolidate_says_what_is_wrong(sharded_trainings, folder, tmp_path, monkeypatch, capsys):
    checkpoint, output_dir = tmp_path / "checkpoint-2", tmp_path / "out"
    checkpoint.symlink_to(sharded_trainings / "whole" / "checkpoint-2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn" / "pytorch_model_fsdp_0").mkdir(parents=True)
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "latest").write_text("global_step2")
    monkeypatch.setitem(sys.modules, "deepspeed.utils.zero_to_fp32", None)
    for source, base, message in [
        (tmp_path / "empty", None, "empty holds no weights"),
        (tmp_path / "nowhere", None, "no checkpoint folder .*nowhere"),
        (tmp_path / "torn", folder, "is incomplete"),
        (tmp_path / "zero", folder, "checkpoint of DeepSpeed, which is needed"),
        (checkpoint, None, "--base"),
        (checkpoint, tmp_path / "empty", "no complete config and processor"),
    ]:
        with pytest.raises(ValueError, match=message):
            consolidate(source, output_dir, base=base)
    assert main(["consolidate", str(checkpoint), str(folder)]) == 1
    assert re.search("error: The output folder .* is not empty", capsys.readouterr().err)
    assert not output_dir.exists()


def test_consolidate_refuses_another_models_config(sharded_trainings, model, processor, tmp_path):
    config = copy.deepcopy(model.config)
    config.interaction_layer_indices = [0]
    config.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"unknown .* model\.interaction_layers\.1"):
        consolidate(sharded_trainings / "whole" / "checkpoint-2", tmp_path / "out", base=tmp_path / "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_equals_one_process(stage, one_process, folder, tmp_path):
    pytest.importorskip("deepspeed")
    launch(train_deepspeed, folder, tmp_path, stage)
    assert_same_logs(torch.load(tmp_path / "logs.pt"), read_logs(one_process))
    checkpoint, expected = tmp_path / "checkpoint-2", one_process.model.state_dict()
    for path in (checkpoint, consolidate(checkpoint, tmp_path / "out")):
        assert_same_tensors(FusionForConditionalGeneration.from_pretrained(path).state_dict(), expected)


@pytest.mark.parametrize("name", LAUNCH_FILES)
def test_launch_files_hold_what_accelerate_knows(name):
    config = load_config_from_file(str(LAUNCH_FILES[name]))  # refuses unknown keys outside of the sections
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for section in (config.fsdp_config, config.deepspeed_config):
        assert not section.keys() - known.keys()
    expected = {DistributedType.FSDP: "fsdp_config", DistributedType.DEEPSPEED: "deepspeed_config"}
    section = expected.get(config.distributed_type)
    assert section is None or getattr(config, section)
