"""Checkpoints of a run: which are whole, which belong to it, and how it goes on from the last one."""

import json
import shutil
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from nblib.distributed import main_process_first
from nblib.files import read_json, write_json

ENDED = "ended_early.json"  # early stopping ended the run before its last step


def prepare_resume(folder: Path, config: dict, places: dict) -> None:
    """Keep the checkpoints of this very run to go on from; clear what another configuration left.

    Args:
        folder: of the checkpoints and training_config.json.
        config: everything that decides the result; it is written, or compared with what is there.
        places: where the inputs lay; written beside it, not compared, since their content is.
    """
    file = folder / "training_config.json"
    same = file.exists() and {k: v for k, v in read_json(file).items() if k not in places} == config
    if folder.exists() and not same:
        shutil.rmtree(folder)
    write_json(file, config | places)


def last_checkpoint(folder: Path) -> str | None:
    """Name the newest complete checkpoint; remove those that a killed run left half-written."""
    with main_process_first():
        for torn in folder.glob("checkpoint-*"):
            try:
                json.loads((torn / "trainer_state.json").read_text())  # the Trainer writes it last
            except (OSError, ValueError):
                shutil.rmtree(torn)
    return get_last_checkpoint(str(folder)) if folder.exists() else None


def run_or_resume(trainer: Trainer, folder: Path) -> None:
    """Train from the last checkpoint on; a run that had ended only loads what it ended with."""
    steps, checkpoint, ended = trainer.args.max_steps, last_checkpoint(folder), folder / ENDED
    if checkpoint and (ended.exists() or int(checkpoint.rpartition("-")[2]) >= steps):
        trainer.load_final(checkpoint)  # the Trainer would take one step more
    elif steps:
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.is_world_process_zero() and trainer.state.global_step < steps:
            write_json(ended, {"step": trainer.state.global_step})
