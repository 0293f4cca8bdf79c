"""The module templates of classic hyperparameter files, compared with the family row."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from easyeditor.errors import HyperParamsError
from easyeditor.lm.families import BlockStack, Family


def check_module_names(model: PreTrainedModel, family: Family, claims: Mapping[str, str]) -> None:
    """Compare templates such as ``rewrite_module_tmp`` with the model's own module names.

    Raises:
        HyperParamsError: some name other modules than this model's; all are listed.
    """
    if family.encoder is None:
        names = _names_of(family.decoder, family.head)
        # Classic files name a tied head by the embedding.
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if getattr(head, "weight", None) is embedding.weight:
            names["lm_head_module"] |= {n for n, m in model.named_modules() if m is embedding}
    else:  # either side may be named; the other templates of T5's files never existed
        sides = (family.decoder, family.encoder)
        names = {"rewrite_module_tmp": {f"{s.blocks}.{{}}.{s.down}" for s in sides}}
        claims = {key: claim for key, claim in claims.items() if key in names}
    wrong = [
        f"{key}={claim!r} (here: {' or '.join(sorted(names[key]))})"
        for key, claim in claims.items()
        if claim.removesuffix(".weight") not in names[key]
    ]
    if wrong:
        raise HyperParamsError(
            f"These module names do not fit {type(model).__name__}: {'; '.join(wrong)}. "
            "Leave them out: the family table knows them."
        )


def _names_of(stack: BlockStack, head: str) -> dict[str, set[str]]:
    """Every spelling of a template that classic files use for a column of blocks."""
    layer = f"{stack.blocks}.{{}}"
    attention = stack.attn_out.rpartition(".")[0].split(".")
    return {
        "rewrite_module_tmp": {f"{layer}.{stack.down}"},
        "layer_module_tmp": {layer},
        "mlp_module_tmp": {f"{layer}.{stack.mlp}".rstrip(".")},
        "attn_module_tmp": {
            f"{layer}.{'.'.join(attention[: i + 1])}" for i in range(len(attention))
        },
        "ln_f_module": {stack.final_norm},
        "lm_head_module": {head},
    }
