"""A prompt as the tokens of the model that answers it."""

from __future__ import annotations

from easyeditor.edits import Prompt
from easyeditor.errors import EditError
from easyeditor.lm.model import LM
from easyeditor.lm.routing import rerouted
from easyeditor.lm.scoring import check_length


def question(lm: LM, prompt: Prompt, max_new_tokens: int) -> tuple[LM, tuple[int, ...]]:
    """Who is asked, and the tokens: an edit may send a prompt elsewhere.

    Raises:
        EditError: the prompt and so many tokens do not fit into the model's context.
    """
    target = rerouted(lm, [prompt]).get(prompt)
    who = lm if target is None or target.lm is None else target.lm
    row = who.text.row(prompt if target is None else target.prompt)
    check_length(who, [row])
    limit = who.context_length
    if limit is not None and len(row.ids) + max_new_tokens > limit:
        raise EditError(
            f"The prompt has {len(row.ids)} tokens and {max_new_tokens} more are asked for; the "
            f"model reads {limit} at most. Shorten the prompt or ask for fewer."
        )
    return who, tuple(row.ids)
