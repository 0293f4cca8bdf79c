"""Turns of a chat as a tokenizer's template writes them, none of their text dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easyeditor.errors import EditError

MARK = "@@content@@"
"""Stands for the user's words while a chat template is asked where it puts them."""


class ChatTemplate:
    """Applies the chat template of a tokenizer.

    The trap: templates of models that see may want a text as a list of parts, and write nothing
    where they get a plain one. Which form is right is tried once for every sequence of roles.

    Args:
        tokenizer: whose template is used, as it is at each call.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._in_parts: dict[tuple[str, tuple[str, ...]], bool] = {}

    def write(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The text of the turns, with the beginning of an answer.

        Raises:
            EditError: the template refuses the turns, or leaves out the last user's text in either
                form, or writes it twice.
        """
        roles = tuple(str(turn["role"]) for turn in turns)
        key = (str(self.tokenizer.chat_template), roles)
        if key not in self._in_parts:
            self._in_parts[key] = self._needs_parts(turns)
        return self._templated(turns, in_parts=self._in_parts[key])

    def _needs_parts(self, turns: Sequence[Mapping[str, Any]]) -> bool:
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if last is None:
            return False
        marked = [{**turn, "content": MARK} if i == last else turn for i, turn in enumerate(turns)]
        reason = "it does not write the user's text exactly once"
        for in_parts in (False, True):
            try:
                if self._templated(marked, in_parts=in_parts).count(MARK) == 1:
                    return in_parts
            except Exception as error:  # of any type: a template is a program of its model
                reason = reason if in_parts else str(error) or repr(error)
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise EditError(
            f"The chat template of this {type(self.tokenizer).__name__} cannot write the turns "
            f"{roles}: {reason}. Ask without a system message or with chat=False."
        )

    def _templated(self, turns: Sequence[Mapping[str, Any]], *, in_parts: bool) -> str:
        if in_parts:
            turns = [
                {**turn, "content": [{"type": "text", "text": turn["content"]}]}
                if isinstance(turn.get("content"), str)
                else turn
                for turn in turns
            ]
        text: str = self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True
        )
        return text
