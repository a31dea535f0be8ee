"""04's training in several processes: `torchrun --nproc_per_node=N -m nblib.train.launch PARAMS.yaml`.

PARAMS.yaml holds 04's parameters, such as outputs/<profile>/04_finetune/params.yaml. The notebook starts this
itself where `processes` is above 1.
"""

import subprocess
import sys
from collections import deque
from pathlib import Path

import yaml

from nblib.distributed import leave, main_process_first, start
from nblib.files import ROOT, at_root, write_text
from nblib.model.encoder import NeuralSparseEncoder
from nblib.run.params import FinetuneParams
from nblib.train import pipeline
from nblib.train.config import TrainConfig
from nblib.train.data import TrainingSet
from nblib.train.sparse import check_settings, plan_batches, train_sparse


def finetune(params: FinetuneParams, encoder: NeuralSparseEncoder, data: TrainingSet, idf) -> Path:
    """Let the teachers read the texts and train as 04's parameters say, in this process or in several.

    Args:
        params: typed parameters; the run was opened by pipeline.open_finetuning.
        encoder: 03's model; it ends as the trained one.
        data, idf: rows, and [V] query weights; other processes read their own.

    Returns:
        The folder of the final model.

    Raises:
        RuntimeError: a process failed; holds the end of its output.
    """
    run = at_root(params.run_dir) / "artifacts"
    if params.processes == 1:
        options = {
            "evaluate_dev": pipeline.dev_measure(params),
            "stop_ids": pipeline.stop_ids(params, encoder.tokenizer),
            "token_cache": pipeline.cache_folder(params) if params.stream_texts else None,
        }
        config = TrainConfig.from_params(params)
        check_settings(encoder, config)
        plan_batches(data, config)
        teacher = pipeline.prepare_teacher(params, data)  # last: it may take hours
        return train_sparse(encoder, data, idf, config, run, teacher, "finetune", **options)
    file = run / "launch.yaml"
    write_text(file, yaml.safe_dump(params.model_dump(), sort_keys=False))
    _in_processes(params.processes, file)
    trained = NeuralSparseEncoder.load(run / "final_model")
    encoder.mlm.load_state_dict(trained.mlm.state_dict())
    return run / "final_model"


def _in_processes(processes: int, file: Path) -> None:
    """Start torchrun on this module and pass its lines on."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "nblib.train.launch", str(file)]
    tail: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        for line in child.stdout:
            tail.append(line)
            print(line, end="", flush=True)
    if child.returncode:
        raise RuntimeError(
            f"training in {processes} processes ended with {child.returncode}:\n{''.join(tail)}"
        )


def main(file: str) -> None:
    """Train this process's share."""
    params = FinetuneParams(**yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    start()
    with main_process_first():
        pipeline.open_finetuning(params)
    data = pipeline.open_training_set(params)
    encoder, idf = pipeline.pretrained_encoder(params)
    finetune(params.model_copy(update={"processes": 1}), encoder, data, idf)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
