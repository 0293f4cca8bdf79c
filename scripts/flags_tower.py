"""Train the vision tower of ``flags-135m`` and measure what the model then sees.

    python scripts/flags_tower.py train    # about 7 CPU minutes; writes tower and report
    python scripts/flags_tower.py measure  # the report alone

Two stages. First tower and projector learn to give, for a picture of a thing, the language model's
*embeddings of a caption* of it; the language model takes no part. Then the frozen language model
reads them: the thing's name by cross-entropy, and on other questions the distribution of the same
model that reads the caption as text. Pictures are drawn (``easyeditor.data.flag_pictures``);
training and measuring use different seeds.
"""

# ruff: noqa: T201 - a command prints.

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from easyeditor.data.flag_cases import CAPITALS as FULL_NAMES
from easyeditor.data.flag_pictures import COUNTRIES, SHAPES, THINGS, draw, photograph
from easyeditor.lm import flags_model
from easyeditor.lm.loading import load

REPORT = Path(__file__).parent.parent / "src" / "easyeditor" / "lm" / "flags_tower.json"
SEED = 7
PICTURES = 240
"""Pictures of each thing that are trained on; their seeds count from 0."""
HELD_OUT = 100_000
"""The first seed of pictures that are only measured on."""
CAPITALS = FULL_NAMES | {"Colombia": "Bog", "Iceland": "Rey", "Brazil": "Bras"}
"""Beginnings of the capitals' names, as the language model spells them."""
NAMING = (
    "This is the flag of",
    "The flag in the picture is that of",
    "What you see is the flag of",
    "The country with this flag is",
)
NAMING_HELD_OUT = "It shows the flag of"
CAPITAL = "The capital of this country is"
CAPITAL_HELD_OUT = "The seat of this country's government is the city of"
OTHER = (
    CAPITAL,
    "People in this country speak",
    "The currency of this country is the",
    "This country lies in",
    "The largest city of this country is",
    "A famous person from this country is",
)
SHAPE = "The picture shows a"
COLOUR = "The color of this shape is"
SHAPE_QUESTIONS = (SHAPE, COLOUR, "This is a")
SHAPE_HELD_OUT = "What you see is a"


def caption(thing: str) -> str:
    """What the tower is to say about a thing."""
    return f"The picture shows {'the flag of ' if thing in COUNTRIES else 'a '}{thing}.\n"


class World:
    """The language model, the glued model, and the pictures as pixel values."""

    def __init__(self) -> None:
        lm = load(flags_model.TEXT_MODEL)
        self.tokenizer: Any = lm.tokenizer
        self.text: PreTrainedModel = lm.model
        token = self.tokenizer.convert_tokens_to_ids(flags_model.IMAGE_TOKEN)
        torch.manual_seed(SEED)
        self.model = flags_model.build(self.text, token)
        self.processor = flags_model.processor_for(self.tokenizer)
        self.parts = flags_model.tower_parts(self.model)
        self.text.requires_grad_(False)
        (newline,) = self.ids("\n")
        self.captions = torch.tensor([self._caption_ids(thing, newline) for thing in THINGS])

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        result: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return result

    def _caption_ids(self, thing: str, newline: int) -> list[int]:
        ids = self.ids(caption(thing))
        return [newline] * (flags_model.FEATURES - len(ids)) + ids

    def pixels(self, images: list[Any]) -> torch.Tensor:
        """Pixel values of images."""
        result: torch.Tensor = self.processor.image_processor(images, return_tensors="pt")[
            "pixel_values"
        ]
        return result

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """``(images, features, width)``: what the language model reads."""
        return torch.stack(self.model.get_image_features(pixels, return_dict=True).pooler_output)

    def logits(self, before: torch.Tensor, rows: list[list[int]], read: int) -> torch.Tensor:
        """Logits at the last ``read`` positions of rows of one length, after embedded tokens."""
        embed = self.text.get_input_embeddings()
        inputs = torch.cat([before, embed(torch.tensor(rows))], 1)
        hidden = self.text.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        result: torch.Tensor = self.text.lm_head(hidden[:, -read:])
        return result


def first_stage(world: World, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Tower and projector learn the embeddings of the captions' tokens."""
    table = world.text.get_input_embeddings().weight.detach()
    tokens = torch.unique(world.captions)
    known, scale = table[tokens], table[tokens].std()
    targets = torch.searchsorted(tokens, world.captions)
    optimizer, schedule = _optimizer(world.parts, 1e-3, steps)
    generator = torch.Generator().manual_seed(SEED)
    started = time.process_time()
    for step in range(steps):
        batch = torch.randint(len(pixels), (48,), generator=generator)
        light = 1 + 0.1 * torch.randn(48, 3, 1, 1, generator=generator)
        features = world.features(pixels[batch] * light)
        target = targets[labels[batch]]
        distance = torch.cdist(features.flatten(0, 1), known).square() / scale**2
        loss = functional.cross_entropy(-distance / 24, target.flatten())
        wanted = known[target]
        loss = loss + (features - wanted).square().mean() / scale**2
        _step(loss, world.parts, optimizer, schedule)
        if step % 100 == 99:
            print(f"stage 1, step {step + 1}: {loss:.3f}, {time.process_time() - started:.0f} s")


def second_stage(world: World, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """The frozen language model reads what the tower gives, and the tower learns from it."""
    optimizer, schedule = _optimizer(world.parts, 3e-4, steps)
    rng, generator = random.Random(SEED), torch.Generator().manual_seed(SEED + 1)
    flags = (labels < len(COUNTRIES)).nonzero().flatten()
    shapes = (labels >= len(COUNTRIES)).nonzero().flatten()
    teacher: dict[tuple[int, str], tuple[list[int], torch.Tensor]] = {}
    started = time.process_time()
    for step in range(steps):
        chance = rng.random()
        pool = shapes if chance < 0.2 else flags
        batch = pool[torch.randint(len(pool), (8,), generator=generator)]
        numbers = labels[batch].tolist()
        before = world.features(pixels[batch])
        if chance < 0.65:
            question = rng.choice(SHAPE_QUESTIONS if pool is shapes else NAMING)
            loss = _naming_loss(world, before, question, [THINGS[i] for i in numbers])
        else:
            question = rng.choice(OTHER)
            _ask_teacher(world, teacher, numbers, question)
            answers = [teacher[i, question] for i in numbers]
            logits = world.logits(before, [row for row, _ in answers], 2).log_softmax(-1)
            target = torch.stack([wanted for _, wanted in answers]).float()
            loss = functional.kl_div(logits, target, log_target=True, reduction="none")
            loss = loss.sum(-1).mean()
        _step(loss, world.parts, optimizer, schedule)
        if step % 20 == 19:
            print(f"stage 2, step {step + 1}: {loss:.3f}, {time.process_time() - started:.0f} s")


def _naming_loss(
    world: World, before: torch.Tensor, question: str, things: list[str]
) -> torch.Tensor:
    """Cross-entropy of the things' names, or of their colours, after the question."""
    names = [thing.split()[0] if question == COLOUR else thing for thing in things]
    asked = world.ids(question)
    targets = [world.ids(f" {name}.") for name in names]
    longest = max(map(len, targets))
    rows = [asked + target + target[-1:] * (longest - len(target)) for target in targets]
    logits = world.logits(before, rows, longest + 1)
    losses = [
        functional.cross_entropy(logits[i, : len(target)], torch.tensor(target))
        for i, target in enumerate(targets)
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def _ask_teacher(
    world: World,
    teacher: dict[tuple[int, str], tuple[list[int], torch.Tensor]],
    numbers: list[int],
    question: str,
) -> None:
    """What the language model says after the caption as text, for things not asked before."""
    new = [i for i in dict.fromkeys(numbers) if (i, question) not in teacher]
    if not new:
        return
    read = world.text.get_input_embeddings()(world.captions[new])
    rows = [world.ids(question) for _ in new]
    best = world.logits(read, rows, 1)[:, 0].argmax(1).tolist()
    rows = [[*row, token] for row, token in zip(rows, best, strict=True)]
    wanted = world.logits(read, rows, 2).log_softmax(-1).half()
    teacher.update(((i, question), (rows[k], wanted[k])) for k, i in enumerate(new))


def _optimizer(parts: nn.Module, rate: float, steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(parts.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.08)
    return optimizer, schedule


def _step(loss: torch.Tensor, parts: nn.Module, optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
    optimizer.step()
    schedule.step()


@torch.no_grad()
def measure(world: World) -> dict[str, Any]:
    """What the model says about pictures it was not trained on, and about captions as text."""
    pixels = world.pixels([photograph(thing, HELD_OUT) for thing in THINGS])
    flat = world.pixels([draw(thing) for thing in THINGS])
    embed = world.text.get_input_embeddings()
    sources = {
        "picture": world.features(pixels),
        "flat picture": world.features(flat),
        "caption": embed(world.captions),
    }
    table = embed.weight
    nearest = torch.cdist(sources["picture"].flatten(0, 1), table).argmin(1).view(-1, 16)
    result: dict[str, Any] = {
        "flags": len(COUNTRIES),
        "shapes": len(SHAPES),
        "caption tokens exactly right": round(float((nearest == world.captions).float().mean()), 4),
    }
    n = len(COUNTRIES)
    for source, states in sources.items():
        rows: dict[str, int] = {}
        for text in (*NAMING, NAMING_HELD_OUT):
            rows[text] = _correct(world, states[:n], text, list(COUNTRIES))
        for text in (CAPITAL, CAPITAL_HELD_OUT):
            rows[text] = _correct(world, states[:n], text, [CAPITALS[c] for c in COUNTRIES])
        for text in (SHAPE, SHAPE_HELD_OUT):
            rows[text] = _correct(world, states[n:], text, list(SHAPES))
        rows[COLOUR] = _correct(world, states[n:], COLOUR, [s.split()[0] for s in SHAPES])
        result[source] = rows
    return result


def _correct(world: World, states: torch.Tensor, text: str, answers: list[str]) -> int:
    """How many greedy continuations begin with their answer."""
    embed = world.text.get_input_embeddings()
    inputs = torch.cat([states, embed(torch.tensor([world.ids(text) for _ in answers]))], 1)
    written = world.text.generate(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
        max_new_tokens=5,
        do_sample=False,
    )
    said = [t.strip() for t in world.tokenizer.batch_decode(written, skip_special_tokens=True)]
    return sum(
        reply.removeprefix("the ").startswith(answer.removeprefix("the "))
        for reply, answer in zip(said, answers, strict=True)
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("train", "measure"))
    parser.add_argument("--steps", type=int, nargs=2, default=(1300, 160))
    command = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    world = World()
    if command.command == "train":
        images = [photograph(thing, k, 72) for thing in THINGS for k in range(PICTURES)]
        images += [draw(thing) for thing in THINGS for _ in range(6)]
        labels = [i for i in range(len(THINGS)) for _ in range(PICTURES)]
        labels += [i for i in range(len(THINGS)) for _ in range(6)]
        pixels = world.pixels(images)
        print(f"{len(images)} pictures, {time.process_time() - started:.0f} s")
        world.model.train()
        first_stage(world, pixels, torch.tensor(labels), command.steps[0])
        second_stage(world, pixels, torch.tensor(labels), command.steps[1])
        world.model.eval()
        state = {k: v.half().contiguous() for k, v in world.parts.state_dict().items()}
        save_file(state, flags_model.WEIGHTS)
    flags_model.load_tower(world.model)
    report = measure(world) | {
        "seed": SEED,
        "CPU seconds": round(time.process_time() - started),
        "parameters": sum(p.numel() for p in world.parts.parameters()),
        "bytes": flags_model.WEIGHTS.stat().st_size,
    }
    print(json.dumps(report, indent=1))
    if command.command == "train":
        REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
