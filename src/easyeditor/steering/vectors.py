"""Steering vectors: the difference of what a model computes of texts of two kinds, as patches.

CAA (arXiv 2312.06681) is the mean difference of pairs, read over the answers' tokens; the
difference of means needs no pairs; a prompt vector is the difference an instruction in front makes.
The trap of a principal component in their place: it is centred, which removes this difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from pydantic import Field

from easyeditor.data.contrast import Contrast, Example
from easyeditor.edits import Prompt
from easyeditor.errors import DataError, DivergedError, EditError, HyperParamsError
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.patches.adapter import POSITIONS, AddVector, Positions
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import PatchInfo
from easyeditor.steering.activations import (
    PARTS,
    READS,
    Part,
    Read,
    part_at,
    path_of,
    read_activations,
)
from easyeditor.steering.conditions import Condition
from easyeditor.timing import Stopwatch

VectorMethod = Literal["caa", "mean", "prompt"]
VECTOR_METHODS: tuple[str, ...] = get_args(VectorMethod)
NAMES = {"caa": "CAA", "mean": "DIFFERENCE-OF-MEANS", "prompt": "PROMPT-VECTOR"}
"""What a patch calls the way its vector was made."""
MIDDLE = 0.5
"""Of the depth: the layer by default."""


class SteeringSettings(HyperParams):
    """How a steering vector was made and is applied; stored in its patch."""

    alg_name: str = "STEERING"
    method: VectorMethod = "caa"
    layers: Layers = (MIDDLE,)
    module: Part = "block"
    read: Read = "answer"
    instruction: str = ""
    """Of a prompt vector."""
    positive: int = 0
    negative: int = 0
    """Numbers of texts."""
    texts: str = ""
    """A digest of them."""
    strength: float = 1.0
    positions: Positions = "all"
    condition: bool = False
    norms: tuple[float, ...] = Field(default=())
    """Of the vector at each layer."""
    output_norms: tuple[float, ...] = Field(default=())
    """The mean norm of the outputs that were read at each layer: the measure of a strength."""


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVectors:
    """One vector per layer, and where each belongs.

    Attributes:
        vectors: ``{layer: (width,)}``, float32 on the CPU.
        sites: ``{layer: name of the module}`` on whose output it is added.
        settings: how they were made; layers are absolute.
        made_for: the description of the patch that they become.
    """

    vectors: Mapping[int, torch.Tensor]
    sites: Mapping[int, str]
    settings: SteeringSettings
    made_for: PatchInfo = field(repr=False)

    @property
    def norms(self) -> dict[int, float]:
        """The vectors' norms by layer."""
        return {layer: float(vector.norm()) for layer, vector in self.vectors.items()}

    def patch(
        self,
        strength: float = 1.0,
        positions: str = "all",
        condition: Mapping[int, Condition] | None = None,
    ) -> ModulePatch:
        """The patch that adds ``strength`` times the vector at every layer.

        Args:
            strength: 1 adds the difference of the two kinds as it was read; negative: the other
                way; 0 leaves every bit as it is.
            positions: see :data:`~easyeditor.patches.adapter.POSITIONS`.
            condition: per layer which rows are steered; None: all.

        Raises:
            HyperParamsError: unknown positions, or a strength that is not finite.
        """
        if positions not in POSITIONS:
            raise HyperParamsError(
                f"positions={positions!r}: a vector is added at {', '.join(POSITIONS)}."
            )
        settings = self.settings.replace(
            strength=strength, positions=positions, condition=bool(condition)
        )
        adapters = {}
        for layer, vector in self.vectors.items():
            where = (condition or {}).get(layer)
            adapters[self.sites[layer]] = (
                AddVector(
                    vector,
                    settings.positions,
                    settings.strength,
                    None if where is None else where.direction,
                    0.0 if where is None else where.threshold,
                ),
            )
        return ModulePatch(adapters, _described(self.made_for, settings))

    def random(self, seed: int = 0) -> SteeringVectors:
        """Vectors of normal numbers with the same norms: what any push of this size does."""
        draw = torch.Generator().manual_seed(seed)
        vectors = {}
        for layer, vector in self.vectors.items():
            noise = torch.randn(len(vector), generator=draw)
            vectors[layer] = noise * (vector.norm() / noise.norm())
        return SteeringVectors(vectors, self.sites, self.settings, self.made_for)


def contrast_vectors(
    lm: LM,
    contrast: Contrast,
    *,
    method: str = "caa",
    layers: Sequence[int | float] = (MIDDLE,),
    module: str = "block",
    read: str = "answer",
) -> SteeringVectors:
    """The mean output over the positive texts minus that over the negative ones, at every layer.

    Args:
        lm: the model; patches that it carries are not seen.
        contrast: the texts, see :mod:`easyeditor.data.contrast`.
        method: ``"caa"`` for pairs, ``"mean"`` for two sets of texts.
        layers: absolute, from the end, or shares of the depth.
        module: what is read and steered: ``"block"``, ``"attention"`` or ``"mlp"``.
        read: ``"answer"`` or ``"last"``, see :data:`~easyeditor.steering.activations.READS`.

    Raises:
        DataError: pairs are wanted, and the numbers of texts differ.
        HyperParamsError: an unknown method, layer, module or way to read.
        UnsupportedModelError: a block has no such part.
        EditError: the vector is zero: nothing that is read differs.
    """
    if method not in ("caa", "mean"):
        raise HyperParamsError(
            f"method={method!r}: texts of two kinds are compared by 'caa' (pairs) or 'mean'; a "
            "prompt vector is made by prompt_vectors."
        )
    if method == "caa":
        contrast = contrast.as_pairs()
    positive, negative = contrast.positive, contrast.negative
    settings = _settings(
        method=method,
        layers=tuple(layers),
        module=module,
        read=read,
        positive=len(positive),
        negative=len(negative),
        texts=_digest((*positive, *negative)),
    )
    return _difference(lm, _rows(lm, positive), _rows(lm, negative), settings)


def prompt_vectors(
    lm: LM,
    prompts: Sequence[str | Prompt],
    instruction: str,
    *,
    layers: Sequence[int | float] = (MIDDLE,),
    module: str = "block",
) -> SteeringVectors:
    """What an instruction in front of prompts changes at their last token, on average.

    Args:
        lm: the model; patches that it carries are not seen.
        prompts: that the instruction is put in front of, with a line break.
        instruction: any text.
        layers: see :func:`contrast_vectors`.
        module: see :func:`contrast_vectors`.

    Raises:
        DataError: no prompts, or an empty instruction.
        HyperParamsError, UnsupportedModelError, EditError: see :func:`contrast_vectors`.
    """
    if not prompts or not instruction.strip():
        raise DataError(
            "A prompt vector is the difference that an instruction makes in front of prompts; "
            f"given were {len(prompts)} prompts and the instruction {instruction!r}."
        )
    plain = [Prompt(p) if isinstance(p, str) else p for p in prompts]
    led = [p.with_text(f"{instruction}\n{p.text}") for p in plain]
    settings = _settings(
        method="prompt",
        layers=tuple(layers),
        module=module,
        read="last",
        instruction=instruction,
        positive=len(plain),
        negative=len(plain),
        texts=_digest([Example(p, "") for p in plain]),
    )
    led_rows, rows = ([lm.text.row(p) for p in kind] for kind in (led, plain))
    return _difference(lm, led_rows, rows, settings)


def _settings(**values: Any) -> SteeringSettings:
    """Settings whose values are checked as they are read, with the words that are allowed."""
    part_names = values["module"] in PARTS, values.get("read", "last") in READS
    if not all(part_names):
        raise HyperParamsError(
            f"module={values['module']!r}, read={values.get('read')!r}: a vector is read and added "
            f"at {', '.join(PARTS)}, and a text is read at {' or '.join(READS)}."
        )
    return SteeringSettings(**values)


def _difference(
    lm: LM, positive: Sequence[Row], negative: Sequence[Row], settings: SteeringSettings
) -> SteeringVectors:
    settings = settings.resolved(lm.n_layers)
    layers = [int(layer) for layer in settings.layers]
    sites = {layer: path_of(lm, part_at(lm, layer, settings.module)) for layer in layers}
    watch = Stopwatch()
    with watch("read"):
        both = read_activations(lm, [*positive, *negative], layers, settings.module, settings.read)
    n = len(positive)
    change = both.means[:n].mean(0) - both.means[n:].mean(0)
    if not change.isfinite().all():
        raise DivergedError(
            "The activations of the texts are not finite. Load the model in float32 or bfloat16."
        )
    if not bool(change.norm(dim=1).all()):
        raise EditError(
            "The two kinds of texts give the same activations where they are read, so there is no "
            "direction between them. Let the texts differ in their answers, or read another layer."
        )
    settings = settings.replace(
        norms=tuple(round(float(x), 4) for x in change.norm(dim=1)),
        output_norms=tuple(round(float(x), 4) for x in both.norms.mean(0)),
    )
    info = PatchInfo.of(lm, NAMES[settings.method], (), settings, watch.seconds)
    vectors = {layer: change[i].clone() for i, layer in enumerate(layers)}
    return SteeringVectors(vectors, sites, settings, info)


def _rows(lm: LM, examples: Sequence[Example]) -> list[Row]:
    return [lm.text.row(example.prompt, example.answer) for example in examples]


def _digest(examples: Sequence[Example]) -> str:
    joined = "\0".join(f"{e.prompt.to_json()}\0{e.answer}" for e in examples)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _described(info: PatchInfo, settings: SteeringSettings) -> PatchInfo:
    dumped = settings.model_dump(mode="json")
    changes = {name: dumped[name] for name in ("strength", "positions", "condition")}
    return info.with_hyperparams({**info.hyperparams, **changes})
