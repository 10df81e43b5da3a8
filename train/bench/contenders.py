"""Who trains, and how each is set up: ours, the usual Trainer + PEFT, and TRL twice.

Run as a program (`python -m train.bench.contenders NAME PLAN.json`) it trains one contender and writes its figures.
It knows nothing of rounds or of what is compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from train.bench.data import read_ids
from train.config import TrainOptions
from train.data.masks import Encoded

OURS, OURS_TOP = "slm", "slm --top-layers"
TRAINER, TRL, TRL_DEFAULTS = "Trainer + PEFT, padded", "TRL in float32", "TRL's defaults"
PEERS = {"trainer": TRAINER, "trl": TRL, "trl-defaults": TRL_DEFAULTS}


@dataclass(frozen=True)
class TrainBenchPlan:
    """One training run of the benchmark; as JSON it is what a contender's process reads.

    steps: optimizer steps (0: until `seconds` are over). top_layers: for the contender that adapts only those.
    """

    base: str
    train_file: str
    held_out_file: str
    ids_file: str
    folder: str
    steps: int
    seconds: float
    batch_size: int
    learning_rate: float
    rank: int
    alpha: float
    top_layers: int
    seed: int

    @property
    def clock_file(self) -> Path:
        return Path(self.folder) / "steps.jsonl"

    @property
    def result_file(self) -> Path:
        return Path(self.folder) / "result.json"


def run(name: str, plan: TrainBenchPlan) -> dict[str, Any]:
    """Train as `name` does, and measure the held-out loss: {held_out_loss}. Steps go to the clock's file."""
    if name in (OURS, OURS_TOP):
        return _ours(plan, top_layers=plan.top_layers if name == OURS_TOP else 0)
    train, held_out, pad_id = read_ids(Path(plan.ids_file))
    peer: Callable[[TrainBenchPlan, list[Encoded], int], Any] = {
        TRAINER: _trainer_and_peft,
        TRL: _trl_float32,
        TRL_DEFAULTS: _trl_defaults,
    }[name]
    return {"held_out_loss": _loss(peer(plan, train, pad_id), held_out, pad_id)}


def _loss(model: Any, held_out: Sequence[Encoded], pad_id: int) -> float:
    from train.batch.tensors import pad
    from train.measure.evaluate import held_out_loss, total

    return total(held_out_loss(model, held_out, partial(pad, pad_id=pad_id))).loss


def _ours(plan: TrainBenchPlan, *, top_layers: int) -> dict[str, Any]:
    """`slm train sft` with its defaults, except for what all contenders share. Two epochs when only the top learns."""
    from train.bench.clock import StepClock
    from train.run.lora import train_sft

    result = train_sft(
        TrainOptions(
            Path(plan.base),
            (Path(plan.train_file),),
            Path(plan.folder) / "adapter",
            eval_data=(Path(plan.held_out_file),),
            targets="qv",
            rank=plan.rank,
            alpha=plan.alpha,
            learning_rate=plan.learning_rate,
            schedule="constant",
            warmup_fraction=0.0,
            batch_size=plan.batch_size,
            max_steps=plan.steps * (2 if top_layers else 1) or 1_000_000,
            top_layers=top_layers,
            seed=plan.seed,
            time_limit_s=plan.seconds,
        ),
        StepClock(plan.clock_file),
    )
    return {"held_out_loss": result.held_out_loss_after}


def _lora(plan: TrainBenchPlan) -> Any:
    from peft import LoraConfig
    from transformers import AutoConfig

    from train.base import has_columns_first, target_modules

    config = AutoConfig.from_pretrained(plan.base, local_files_only=True)
    return LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=0.0,
        target_modules=target_modules(config, "qv"),
        fan_in_fan_out=has_columns_first(config),
        task_type="CAUSAL_LM",
    )


def _shared(plan: TrainBenchPlan) -> dict[str, Any]:
    """What every peer is told: the arguments that fix what is learned, not how fast."""
    return {
        "output_dir": plan.folder,
        "per_device_train_batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": plan.steps or 1_000_000,
        "seed": plan.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _trainer_and_peft(plan: TrainBenchPlan, train: list[Encoded], pad_id: int) -> Any:
    """The way of the tutorials: each batch padded to its longest sequence, -100 on prompts, the model's own loss."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

    from train.bench.clock import ClockCallback, StepClock

    def collate(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in items)
        fillers = {"input_ids": pad_id, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor([item[name] + [filler] * (width - len(item[name])) for item in items])
            for name, filler in fillers.items()
        }

    set_seed(plan.seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(plan.base, dtype=torch.float32), _lora(plan))
    rows = [{"input_ids": [*i.ids], "attention_mask": [1] * len(i.ids), "labels": [*i.labels]} for i in train]
    arguments = TrainingArguments(use_cpu=True, dataloader_pin_memory=False, **_shared(plan))
    clock = ClockCallback(StepClock(plan.clock_file), plan.seconds)
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
    return model


def _trl_float32(plan: TrainBenchPlan, train: list[Encoded], pad_id: int) -> Any:
    # Padding to the longest of the batch is what TRL does of itself; packing is off by default.
    forced = {"bf16": False, "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "float32"}}
    return _trl(plan, train, forced | {"use_cpu": True, "dataloader_pin_memory": False})


def _trl_defaults(plan: TrainBenchPlan, train: list[Encoded], pad_id: int) -> Any:
    # Without a GPU it refuses bfloat16, its default, and names this switch.
    return _trl(plan, train, {"use_cpu": True})


def _trl(plan: TrainBenchPlan, train: list[Encoded], arguments: dict[str, Any]) -> Any:
    """SFTTrainer on token ids with a completion mask, and the loss on completions only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from train.base import load_tokenizer
    from train.bench.clock import ClockCallback, StepClock

    # Our labels, as TRL takes them.
    rows = [{"input_ids": [*i.ids], "completion_mask": [int(label >= 0) for label in i.labels]} for i in train]
    trainer = SFTTrainer(
        model=plan.base,
        args=SFTConfig(completion_only_loss=True, **arguments, **_shared(plan)),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(Path(plan.base)),
        peft_config=_lora(plan),
        callbacks=[ClockCallback(StepClock(plan.clock_file), plan.seconds)],
    )
    trainer.train()
    return trainer.model


if __name__ == "__main__":
    the_plan = TrainBenchPlan(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    figures = run(sys.argv[1], the_plan)
    the_plan.result_file.write_text(json.dumps(figures), encoding="utf-8")
