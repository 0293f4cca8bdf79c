"""MELO: a codebook that says which low-rank block answers a prompt, arXiv 2312.11795.

The edits of one call train one block, a low-rank change of linear layers above a router layer. An
edit's key is what the router layer gives at the prompt's last token; a prompt whose key lies within
the radius of its nearest edit is computed with that edit's block, at every token, and every other
prompt by the unedited model, to the bit. Blocks never meet: a prompt gets one or none. The trap: a
rephrased prompt is seldom within a radius that leaves other prompts alone.

Beside the published method: the router reads the prompt's last token, never the answer's; every
edit has a key and a radius of its own, which follow from the edits that are there, so undoing a
call is exact; a block's product is scaled by one, not by the number of blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.keys import values_at
from easyeditor.associative.unrelated import nearest_distance_quantile, unrelated_rows
from easyeditor.edits import Edit, canonical_json, check_consistent
from easyeditor.errors import HyperParamsError
from easyeditor.gradients.minimize import Schedule, minimize
from easyeditor.gradients.parametrizations import LowRankProducts
from easyeditor.hyperparams import Layers, resolve_layers
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.structure import weights_in_blocks
from easyeditor.lm.tokens import Row
from easyeditor.methods.adapted_layer import AdaptedLayer, AdapterHyperParams
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.methods.melo.router import BlockRouter, RoutedProduct
from easyeditor.methods.tuning import target_objective, target_rows
from easyeditor.patches.adapter import Adapter
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.parts import LowRank
from easyeditor.patches.patch import PatchInfo
from easyeditor.patches.stack import without_patches
from easyeditor.timing import Stopwatch

N_UNRELATED_PROMPTS = 300  # by which the initial radius is chosen
BLOCKS_ABOVE = 2  # the router, that are changed by default


class MELOHyperParams(AdapterHyperParams):
    """Settings of MELO; classic files' groups (``grace``, ``model``, ``lora``) are read, too.

    ``layers`` (or ``inner_params``) names the router layer. The low-rank changes are on the linear
    layers ``target_modules`` of ``lora_layers`` (as in PEFT; without names the down-projections,
    without layers the two blocks above the router), ``num_rank_per_block`` ranks each. By default
    ``init_radius`` is the ``eps_quantile`` of the distances of unrelated prompts' keys.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            *("dist_fn", "val_init", "val_train", "val_reg", "reg", "replacement", "expand_mode"),
            *("num_pert", "key_id", "num_block", "metric_period", "task", "lora_task_type"),
            *("check_dir", "max_length", "name", "class_name", "tokenizer_class", "pt"),
            *("tokenizer_name", "fan_in_fan_out", "cls_name", "cls_class", "supervised", "cos"),
            *("freeze", "square", "bound_embeds", "use_all_negatives", "freeze_lora"),
            *("dist_heads", "cross_attend", "soft_weighting", "checkpoint_grad", "lora_r"),
            *("lora_alpha", "lora_dropout"),
        )
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {
            "inner_params": ["transformer.h.35.mlp.c_fc"],
            "target_modules": ["c_fc"],
            "lora_layers": [36, 37],
            "init_radius": 0.5,
            "edit_lr": 1e-3,
            "batch_size": 4,
        },
        "smollm2-135m": {},
    }

    alg_name: str = "MELO"
    layers: Layers = (0.73,)
    target_modules: tuple[str, ...] = ()
    lora_layers: tuple[int | float, ...] = ()
    num_rank_per_block: int = Field(2, ge=1)
    edit_lr: float = Field(1e-2, gt=0)
    n_iter: int = Field(50, ge=1)
    init_radius: float | None = Field(None, gt=0)
    eps_quantile: float = Field(0.05, ge=0, le=1)
    batch_size: int = Field(1, ge=1)

    def __init__(self, /, **data: Any) -> None:
        super().__init__(**_flat(data))

    def weights(self, lm: LM, router: AdaptedLayer) -> list[NamedWeight]:
        """The linear layers that blocks change.

        Raises:
            HyperParamsError: one is not above the router, or there is none.
            UnsupportedModelError: a weight that cannot be read, or a block without an MLP.
        """
        first, n = router.layer + 1, lm.n_layers
        prefix = f"{lm.family.decoder.blocks}."
        whole = [name for name in self.target_modules if name.startswith(prefix)]
        if whole:  # classic files write whole names, which say their layers
            numbers = [name.removeprefix(prefix).partition(".")[0] for name in whole]
            layers = tuple(sorted({int(number) for number in numbers if number.isdigit()}))
        else:
            chosen = self.lora_layers or tuple(range(first, min(first + BLOCKS_ABOVE, n)))
            layers = resolve_layers(chosen, n)
        if not layers or layers[0] < first:
            raise HyperParamsError(
                f"lora_layers={list(layers)}, and the router is in block {router.layer} of {n}: "
                "what it decides reaches the blocks above it. Name some of those, or a lower "
                "router (layers)."
            )
        if whole:
            return lm.weights(layers, self.target_modules)
        if not self.target_modules:
            return [lm.projection(layer) for layer in layers]
        blocks = {f"{prefix}{i}": lm.blocks[i] for i in layers}
        return weights_in_blocks(lm.model, blocks, self.target_modules)


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """A classic file's groups as fields, under our names."""
    groups = [data[name] for name in ("grace", "lora", "model") if isinstance(data.get(name), dict)]
    if not isinstance(data.get("grace"), dict):
        return dict(data)
    result = {k: v for k, v in data.items() if k not in ("grace", "lora", "model")}
    for group in groups:
        result |= group
    model = data.get("model")
    if isinstance(model, dict) and "name" in model:
        result["model_name"] = model["name"]
    for old, new in (
        ("num_iter", "n_iter"),
        ("num_edit_per_block", "batch_size"),
        ("grace_layer", "inner_params"),
    ):
        if old in result:
            result[new] = result.pop(old)
    return result


@dataclass(frozen=True)
class MELOState(State):
    """The radius that a new edit gets."""

    radius: float


class MELO(Method[MELOState]):
    """One low-rank block for the edits of a call, behind a router."""

    name = "MELO"
    title = "low-rank blocks behind a codebook, for a lifetime of edits, arXiv 2312.11795"
    hyperparams_class = MELOHyperParams
    state_class = MELOState

    hyperparams: MELOHyperParams

    def initial_state(self, lm: LM) -> MELOState:
        """The initial radius: ``init_radius``, or from the keys of unrelated prompts."""
        settings = self.hyperparams
        if settings.init_radius is not None:
            return MELOState(settings.init_radius)
        router = settings.adapted_layer(lm)
        prompts = [row.ids for row in unrelated_rows(lm, N_UNRELATED_PROMPTS, settings.seed)]
        with without_patches(lm.model):
            keys = _keys(lm, router, prompts)
        return MELOState(nearest_distance_quantile(keys, settings.eps_quantile))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: MELOState | None = None
    ) -> Outcome[MELOState]:
        """The block of ``edits``, trained on the model without adapters, and their keys.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
            HyperParamsError: settings that name no layers of the model, or none above the router.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        router, watch = settings.adapted_layer(lm), Stopwatch()
        weights = settings.weights(lm, router)
        rows = target_rows(lm, edits, append_eos=False)
        rank = settings.num_rank_per_block
        draw = torch.Generator().manual_seed(settings.seed)
        products = LowRankProducts(weights, rank, rank, 0.0, draw)
        schedule = Schedule(settings.n_iter, len(rows), settings.edit_lr)
        with without_patches(lm.model, ModulePatch):
            with watch("keys"):
                keys = _keys(lm, router, [lm.text.row(edit.prompt).ids for edit in edits])
            with watch("train"), lm.at_rest():
                logits = logits_above(lm, [weight.path for weight in weights], rows)
                minimize(lm, products, target_objective(logits, rows), len(rows), schedule, "MELO")
        block = _number(edits)
        adapters: dict[str, tuple[Adapter, ...]] = {
            router.path: (
                BlockRouter(
                    keys.cpu(),
                    torch.full((len(edits),), block),
                    torch.full((len(edits),), state.radius),
                    router.path,
                ).eval(),
            )
        }
        for path, (part,) in products.parts().items():
            assert isinstance(part, LowRank)
            product = RoutedProduct(part.u.cpu(), part.v.cpu(), torch.tensor(block), router.path)
            adapters[path.removesuffix(".weight")] = (product.eval(),)
        info = PatchInfo.of(lm, self.name, edits, settings, watch.seconds)
        return Outcome(ModulePatch(adapters, info), state)


def _keys(lm: LM, router: AdaptedLayer, prompts: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """What the router layer gives at each prompt's last token, ``(n, d_out)``, float32."""
    ends = [Row(ids, (), 0 if lm.encoder_decoder else len(ids) - 1) for ids in prompts]
    return values_at(lm, router.site, ends)


def _number(edits: Sequence[Edit]) -> int:
    """A number that these edits alone have."""
    text = canonical_json([(edit.prompt, edit.target) for edit in edits])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
