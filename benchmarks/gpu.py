"""Edits of models of 1.5 to 8 billion parameters on one GPU: seconds, memory, share of the peak.

Random weights of the real shapes in bfloat16 and a small tokenizer trained on the spot, so nothing
is downloaded. Random weights never say the target, so every search takes all of its steps: times
are those of the worst case, and say nothing about the quality of an edit.

    python benchmarks/gpu.py                  # all four, under 8 minutes on an H100 or H200
    python benchmarks/gpu.py --models llama-3-8b --out FILE
    python benchmarks/gpu.py --small          # the same code on shapes that a CPU runs in a minute
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import common
import tiny
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.value_optimization import optimize_values
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import generate
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.second_moments import moments
from easyeditor.timing import peak_memory

MOMENT_LAYERS = [4, 5, 6, 7, 8]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-xl": (
        "gpt2",
        {"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "vocab_size": 50257},
    ),
    "gpt-j-6b": (
        "gptj",
        {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400},
    ),
    "llama-2-7b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
    ),
    "llama-3-8b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
}
SMALL = {
    "n_embd": 128, "n_layer": 12, "n_head": 4, "rotary_dim": 16, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 600,
}  # fmt: skip
PRESETS = {"gpt2-xl": "gpt2-xl", "gpt-j-6b": "gpt-j-6B", "llama-3-8b": "llama-2-7b"}


class Bench:
    """One model and what was measured on it."""

    def __init__(self, name: str, device: torch.device, small: bool) -> None:
        kind, shape = SHAPES[name]
        if small:
            shape = {key: SMALL.get(key, value) for key, value in shape.items()}
        config = AutoConfig.for_model(kind, **shape)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.02)
        self.lm = LM(model, tiny.tokenizer())
        self.device, self.name, self.small = device, name, small
        self.bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.told: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}

    def wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize(self.device)

    def measure(self, what: str, call: Any, per: int = 1) -> Any:
        """Time ``call`` once, with peak memory; an error is a result, too."""
        gc.collect()
        self.wait()
        with peak_memory(self.device) as peak:
            start = time.perf_counter()
            try:
                made = call()
            except Exception as error:  # out of memory, most likely: the other figures count
                traceback.print_exc()
                self.told[what] = {"error": f"{type(error).__name__}: {error}"[:300]}
                return None
            self.wait()
            seconds = time.perf_counter() - start
        self.told[what] = {
            "seconds": round(seconds, 4),
            "seconds_per_edit": round(seconds / per, 5),
            "peak_share_of_weights": round(peak.total_mb * 2**20 / self.bytes, 3),
        }
        patch = getattr(made, "patch", made)
        phases = getattr(getattr(patch, "info", None), "seconds", None)
        if phases:
            self.told[what]["phases"] = dict(phases)
        print(self.name, what, json.dumps(self.told[what]), flush=True)
        return made

    def settings(self, method: str, **changes: Any) -> Any:
        kind = METHODS.get(method).hyperparams_class
        known = {"mom2_dataset": str(self.text), "stats_dir": str(self.stats)}
        if "mom2_dataset" not in kind.model_fields:
            known = {}
        preset = PRESETS.get(self.name, self.name)
        if self.small and method != "MEMIT":
            changes["layers"] = [4]
        return kind.preset(preset, **known, **changes)

    def run(self, folder: Path, memit: list[int]) -> None:
        self.text, self.stats = folder / "text.txt", folder / f"moments-{self.name}"
        layers = MOMENT_LAYERS
        self.measure("generate_warm_up", lambda: generate(self.lm, ["The river is"], 8))
        gemm = matrix_rate(self.device)
        self.told["bf16_matrix_rate_tflops"] = round(gemm / 1e12, 2)
        tokens = 2000 if self.small else 10 * self.lm.projection(0).d_in
        self.measure(
            "moments_five_layers",
            lambda: moments(
                self.lm, layers, source=str(self.text), tokens=tokens, directory=self.stats
            ),
        )
        self.told["moments_five_layers"]["tokens"] = tokens
        rome = METHODS.get("ROME")(self.settings("ROME", mom2_n_tokens=tokens))
        first, second = common.made_up_edits(2)
        self.measure("rome_first_edit", lambda: rome.edit(self.lm, [first]))
        state = rome.initial_state(self.lm)
        self.measure("rome_one_edit", lambda: rome.edit(self.lm, [second], state))
        ft = METHODS.get("FT")(self.settings("FT"))
        self.measure("ft_one_edit", lambda: ft.edit(self.lm, [first]))
        self.resumed_against_plain(rome.hyperparams)
        room = self.room()
        for n in memit:
            changes = {"layers": layers, "mom2_n_tokens": tokens, "memory_mb": room}
            method = METHODS.get("MEMIT")(self.settings("MEMIT", **changes))
            edits = common.made_up_edits(n)
            state = method.initial_state(self.lm)
            self.measure(f"memit_{n}", partial(method.edit, self.lm, edits, state), n)
        self.share_of_peak(gemm, room)

    def room(self) -> int:
        """MB that the search may use: half of what is free."""
        if self.device.type == "cpu":
            return 256
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free / 2**20 / 2)

    def resumed_against_plain(self, settings: Any) -> None:
        site = Site(int(settings.resolved(self.lm.n_layers).layers[0]), "down")
        contexts = context_prefixes(self.lm, ((5, 10), (10, 10)))
        edits = common.made_up_edits(1)
        search = partial(optimize_values, self.lm, site, edits, contexts, settings.search())
        for resume in (True, False):
            self.measure(
                "search_resumed" if resume else "search_plain",
                partial(search, resume=resume, memory=2**33),
            )
        both = [self.told[f"search_{kind}"].get("seconds") for kind in ("plain", "resumed")]
        if all(both):
            self.told["resumed_times_faster"] = round(both[0] / both[1], 2)

    def share_of_peak(self, rate: float, room: int) -> None:
        """Value steps of 100 edits: multiplications done, against what the card was measured at."""
        settings = self.settings("MEMIT", layers=MOMENT_LAYERS).resolved(self.lm.n_layers)
        contexts = context_prefixes(self.lm, settings.context_template_length_params)
        edits = common.made_up_edits(100)
        search = settings.search()
        tokens = sum(
            len(row.ids) - (row.subject_last or 0)
            for edit in edits
            for context in contexts
            for row in [
                self.lm.text.row(edit.prompt, edit.target, subject=edit.subject, prefix=context)
            ]
        )
        above = self.lm.blocks[MOMENT_LAYERS[-1] + 1 :]
        weights = sum(p.numel() for block in above for p in block.parameters() if p.dim() > 1)
        # Forward, and backward to the inputs alone: the weights have no gradient.
        flops = 4 * weights * tokens * search.v_num_grad_steps
        self.measure(
            "value_steps_100",
            lambda: optimize_values(
                self.lm,
                Site(MOMENT_LAYERS[-1], "block"),
                edits,
                contexts,
                search,
                memory=room * 2**20,
            ),
        )
        spent = self.told["value_steps_100"].get("seconds")
        if spent:
            self.told["value_steps_100"]["share_of_matrix_rate"] = round(flops / spent / rate, 3)


def matrix_rate(device: torch.device) -> float:
    """Multiply-adds per second, twice, of a large bfloat16 product on this device."""
    size = 8192 if device.type != "cpu" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(8):
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--memit", default="1,100,1000")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else common.processor()
    told: dict[str, Any] = {"device": card, "torch": torch.__version__, "small": args.small}
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = [f"{edit.prompt} {edit.target}." for edit in common.made_up_edits(1000)]
        (folder / "text.txt").write_text(
            "\n".join(" ".join(lines[i:] + lines[:i]) for i in range(60))
        )
        for name in args.models.split(","):
            start = time.perf_counter()
            bench = Bench(name, device, args.small)
            bench.run(folder, [int(n) for n in args.memit.split(",")])
            told[name] = {**bench.told, "whole_seconds": round(time.perf_counter() - start, 1)}
            if args.out:
                args.out.write_text(json.dumps(told, indent=1) + "\n")
            del bench
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if not args.small and args.out is None:
        common.write("gpu", told)
    else:
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
