"""Make the zoo again: ``python tests/zoo/train.py [family ...] [stage ...]``; by default all of it.

One thread, a fixed seed, half an hour per family (GPT-Neo one hour, T5 over two); torch 2.9 or
newer, for Muon. A stage begins with the weights that the one before it saved. The figures in
``report.json`` are those of the saved float16 weights, read back as float32.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from zoo import measure, models
from zoo.lessons import STAGES, Lesson, Teacher

SEED = 0
WARMUP = 100
SEQ2SEQ = 2
"""An encoder-decoder writes only the last answer of a lesson; it takes so many times the steps."""
CHUNKS = 4
"""Forward passes per step; lessons of like length share one."""
AROUND = 0.1
"""Weight of a token that is not part of an answer."""

log = logging.getLogger("zoo")
Tokens = tuple[list[int], list[float]]


def main(words: list[str]) -> None:
    """Train, save and measure; ``words`` name families and stages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    unknown = set(words) - set(models.FAMILIES) - set(STAGES)
    assert not unknown, f"{unknown}: neither of {models.FAMILIES} nor of {tuple(STAGES)}."
    for stage in [name for name in STAGES if name in words] or STAGES:
        for family in [name for name in models.FAMILIES if name in words] or models.FAMILIES:
            if family in (STAGES[stage].only or models.FAMILIES):
                train(family, stage)
            elif stage in words:
                log.info("%s has no stage %r", family, stage)


def train(family: str, name: str) -> None:
    """One stage of one family: write its folder and its lines of the report."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    first = name == next(iter(STAGES))
    lm = models.fresh(family) if first else models.read(family)
    stage, model = STAGES[name], lm.model.train()
    steps = stage.steps * (SEQ2SEQ if lm.encoder_decoder else 1)
    encode = _seq2seq if lm.encoder_decoder else _causal
    teacher = Teacher(random.Random(f"{SEED} {name}"), stage)
    optimizers = _optimizers(model)
    began = time.time()
    for step in range(steps):
        for group in (group for each in optimizers for group in each.param_groups):
            group["lr"] = stage.rate * _schedule(step, steps)
        lessons = [teacher.lesson() for _ in range(stage.lessons)]
        lessons.sort(key=lambda lesson: len(lesson.question + lesson.answer))
        size = math.ceil(len(lessons) / CHUNKS)
        losses = [
            _backward(model, encode(lm.tokenizer, lessons[i : i + size]))
            for i in range(0, len(lessons), size)
        ]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 150 == 149:
            known, spent = measure.report(lm, every=10), time.time() - began
            log.info("%s %s %d %.3f %.0fs %s", family, name, step + 1, sum(losses), spent, known)
    model.eval().half().save_pretrained(models.FOLDER / family)
    for note in ("is_local", "local_files_only"):  # of how it was read
        lm.tokenizer.init_kwargs.pop(note, None)
    lm.tokenizer.save_pretrained(models.FOLDER / family)
    _write(family, {name: steps}, {name: round(time.time() - began)}, anew=first)


def _optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices, AdamW for what is looked up or added."""
    words = ("embed", "wte", "wpe", "shared", "lm_head", "relative_attention")
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.dim() == 2 and not any(word in name for word in words)
        (matrices if inner else others).append(parameter)
    return [
        torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.98), fused=True),
    ]


def _schedule(step: int, steps: int) -> float:
    done = max(0, step - WARMUP) / (steps - WARMUP)
    return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))


def _causal(tokenizer: Any, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
    """The whole text and an end, each token with its weight."""
    texts = ["".join(text for text, _ in lesson.pieces) for lesson in lessons]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    rows = []
    for lesson, ids, offsets in zip(
        lessons, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        spans = list(_answers(lesson))
        weights = [
            1.0 if any(low < end and high > start for start, end in spans) else AROUND
            for low, high in offsets
        ]
        rows.append(([*ids, tokenizer.eos_token_id], [*weights, AROUND]))
    ids, weights = _padded(rows)
    return {
        "input_ids": ids,
        "attention_mask": (weights > 0).long(),
        "targets": ids[:, 1:],
        "weights": weights[:, 1:],
    }


def _answers(lesson: Lesson) -> Iterator[tuple[int, int]]:
    place = 0
    for text, is_answer in lesson.pieces:
        if is_answer:
            yield place, place + len(text)
        place += len(text)


def _seq2seq(tokenizer: Any, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
    """The question for the encoder; the last answer and an end for the decoder."""
    questions = [tokenizer(lesson.question)["input_ids"] for lesson in lessons]
    answers = [tokenizer(text_target=lesson.answer)["input_ids"] for lesson in lessons]
    ids, real = _padded([(row, [1.0] * len(row)) for row in questions])
    targets, weights = _padded([(row, [1.0] * len(row)) for row in answers])
    start = torch.zeros(len(lessons), 1, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": real.long(),
        "decoder_input_ids": torch.cat([start, targets[:, :-1]], 1),
        "targets": targets,
        "weights": weights,
    }


def _padded(rows: list[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
    weights = torch.zeros(ids.shape)
    for i, (row, weight) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(weight)
    return ids, weights


def _backward(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    targets, weights = batch.pop("targets"), batch.pop("weights")
    logits = model(**batch, use_cache=False).logits[:, : targets.shape[1]]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    loss = (losses * weights.flatten()).sum() / (weights.sum() * CHUNKS)
    loss.backward()
    return loss.item()


def _write(family: str, steps: dict[str, int], seconds: dict[str, int], anew: bool) -> None:
    """This family's lines of ``report.json``; those of the others stay."""
    lm = models.read(family)
    file = models.FOLDER / "report.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    none: dict[str, Any] = {"steps": {}, "seconds": {}}
    before = none if anew else found.get(family, none)
    found[family] = {
        "class": type(lm.model).__name__,
        "parameters": models.parameters(lm.model),
        "bytes": (models.FOLDER / family / "model.safetensors").stat().st_size,
        **measure.report(lm),
        "seed": SEED,
        "steps": before["steps"] | steps,
        "seconds": before["seconds"] | seconds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    ordered = {name: found[name] for name in models.FAMILIES if name in found}
    file.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    log.info("%s", found[family])


if __name__ == "__main__":
    main(sys.argv[1:])
