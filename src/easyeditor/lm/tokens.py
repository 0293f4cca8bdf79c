"""Text to tokens: prompt and target joined once, positions found by character offsets.

One function, :meth:`Text.row`, builds every token sequence the project feeds to a model, so a
space, a BOS token or a padding rule is decided in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from easyeditor.edits import Prompt, as_prompt
from easyeditor.errors import EditError, ModelLoadError
from easyeditor.joining import BLANKS, separator
from easyeditor.subjects import locate_subject

_TOKENIZER = "easyedit_tokenizer"
MARK = "@@content@@"
"""Stands for the user's words while a chat template is asked where it puts them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised prompt with its target.

    Attributes:
        ids: the tokens of prompt and target (of the prompt alone for an encoder-decoder).
        target: the target's tokens. In a causal model they are the tail of ``ids``.
        subject_last: index in ``ids`` of the subject's last token, if a subject was given.
        subject_first: index of its first.
    """

    ids: tuple[int, ...]
    target: tuple[int, ...] = ()
    subject_last: int | None = None
    subject_first: int | None = None

    @property
    def prompt_length(self) -> int:
        """Tokens before the target, in a causal model."""
        return len(self.ids) - len(self.target)


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded rows: ``ids``, ``mask`` and ``positions``, each ``(rows, length)``."""

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> Batch:
    """Pad to the longest; positions count real tokens, so either side gives equal logits."""
    length = max((len(s) for s in sequences), default=0)
    ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        start = length - len(sequence) if left else 0
        ids[i, start : start + len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[i, start : start + len(sequence)] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(ids.to(device), mask.to(device), positions.to(device))


class Text:
    """A tokenizer with the project's rules for joining, offsets and special tokens.

    Args:
        tokenizer: a fast Hugging Face tokenizer (character offsets are needed).
        encoder_decoder: whether prompt and target go to different sides.
        chat_template: wrap prompts by the tokenizer's own template, as one user turn.

    Raises:
        ModelLoadError: the tokenizer gives no offsets, or has no chat template to apply.
    """

    def __init__(self, tokenizer: Any, *, encoder_decoder: bool, chat_template: bool) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelLoadError(
                f"{type(tokenizer).__name__} gives no character offsets. Load the fast tokenizer: "
                "AutoTokenizer.from_pretrained(..., use_fast=True)."
            )
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise ModelLoadError("chat_template=True, but this tokenizer has no chat template.")
        self.tokenizer = tokenizer
        self.encoder_decoder = encoder_decoder
        self.chat_template = chat_template

    @property
    def pad_id(self) -> int:
        """Padding token; where there is none, EOS or 0 (masked anyway)."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0

    def row(
        self,
        prompt: Prompt | str,
        target: str = "",
        *,
        subject: str | None = None,
        prefix: str = "",
    ) -> Row:
        """Tokens of ``prefix + prompt + target`` with the target's and subject's places.

        Prompt and target are joined as a writer would (:mod:`easyeditor.joining`). Blanks at the
        prompt's end are not fed, so that what is scored is what generation starts from; a raw
        prompt is taken as it stands. The prompt's tokens are those it has without the target.

        Raises:
            EditError: the prompt has images, or a system message that no template takes.
            SubjectNotFoundError: the subject does not occur in the prompt.
        """
        prompt = as_prompt(prompt)
        self._check_readable(prompt)
        content = prefix + prompt.text
        trimmed = content if prompt.raw else content.rstrip(BLANKS) or content
        chat = self._as_chat(prompt)
        text, start = self._render(trimmed, prompt.system, chat=chat)
        span = None
        if subject is not None:
            place = locate_subject(prompt.text, subject)
            span = (start + len(prefix) + place.start, start + len(prefix) + place.end)
        if self.encoder_decoder:
            ids, offsets = self._encode(text, keep_end=True, specials=not chat)
            labels = tuple(self.tokenizer(text_target=target)["input_ids"]) if target else ()
            if labels and labels[-1] == self.tokenizer.eos_token_id:
                labels = labels[:-1]
            return Row(ids, labels, *self._ends(offsets, span))
        if prompt.raw or (chat and text[-1:].isspace()):
            gap = ""
        else:
            gap = separator(text if chat else content, target)
        ids, offsets = self._encode(text + gap + target, keep_end=False, specials=not chat)
        begin = len(ids)
        if target:  # a space that is a token of its own belongs to the target, too
            begin = next(i for i, (_, high) in enumerate(offsets) if high > len(text))
            if not gap and not target[0].isspace():
                alone, of_prompt = self._encode(text, keep_end=False, specials=not chat)
                if ids[:begin] != alone:  # a token across the border
                    return Row(
                        alone + (tail := self._continuation(target) or ids[begin:]),
                        tail,
                        *self._ends(of_prompt, span),
                    )
        return Row(ids, ids[begin:], *self._ends(offsets, span))

    def _check_readable(self, prompt: Prompt) -> None:
        if prompt.images:
            raise EditError(
                f"The prompt {prompt.text!r} has {len(prompt.images)} images, and this model is "
                "read through its tokenizer alone. Give the text without images."
            )
        if prompt.chat and not getattr(self.tokenizer, "chat_template", None):
            raise EditError(
                f"The prompt {prompt.text!r} shall be asked in chat form, and this tokenizer has "
                "no chat template. Give it with chat=None, or use an instruction-tuned model."
            )
        if prompt.system is not None and not self._as_chat(prompt):
            raise EditError(
                f"The prompt {prompt.text!r} has a system message, and prompts are plain text "
                "here. Load the model with chat_template=True, or put the message into the text."
            )

    def _as_chat(self, prompt: Prompt) -> bool:
        """Whether the prompt is wrapped by the template."""
        return self.chat_template if prompt.chat is None else prompt.chat

    def _continuation(self, text: str) -> tuple[int, ...]:
        """Tokens of ``text`` in the middle of a line; () where none begins at its border."""
        for before in ("\n", ".", "a"):
            encoded = self.tokenizer(
                before + text, return_offsets_mapping=True, add_special_tokens=False
            )
            offsets = encoded["offset_mapping"]
            first = next((i for i, (low, _) in enumerate(offsets) if low >= len(before)), None)
            if first and offsets[first - 1][1] == len(before):
                return tuple(encoded["input_ids"][first:])
        return ()

    def plain(self, text: str) -> tuple[int, ...]:
        """Tokens of running text: BOS where the tokenizer adds one, never a chat template."""
        return self._encode(text, keep_end=False, specials=True)[0]

    def _render(self, prompt: str, system: str | None, *, chat: bool) -> tuple[str, int]:
        """The text to tokenise and where ``prompt`` starts in it."""
        if not chat:
            return prompt, 0
        before = self._wrap(MARK, system).partition(MARK)[0]
        text = self._wrap(prompt, system)
        start = len(before)
        if not text.startswith(prompt, start):  # the template trims what it is given
            start -= len(prompt) - len(prompt.lstrip())
        return text, start

    def _wrap(self, content: str, system: str | None) -> str:
        turns = [] if system is None else [{"role": "system", "content": system}]
        wrapped: str = self.tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
        )
        return wrapped

    def _encode(
        self, text: str, *, keep_end: bool, specials: bool
    ) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        # A template writes its own BOS, so the tokenizer must not add a second one.
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=specials)
        ids, offsets = list(encoded["input_ids"]), [tuple(o) for o in encoded["offset_mapping"]]
        end = self.tokenizer.eos_token_id
        while not keep_end and ids and ids[-1] == end and offsets[-1][0] == offsets[-1][1]:
            ids.pop()
            offsets.pop()
        return tuple(ids), offsets

    @staticmethod
    def _ends(
        offsets: list[tuple[int, int]], span: tuple[int, int] | None
    ) -> tuple[int | None, int | None]:
        """The last and the first token that the characters of ``span`` lie in."""
        if span is None:
            return None, None
        inside = [i for i, (low, high) in enumerate(offsets) if low < span[1] and high > span[0]]
        return inside[-1], inside[0]


def attach_tokenizer(model: nn.Module, tokenizer: Any) -> None:
    """Leave the tokenizer with the model; its own ``generate`` needs it while it is routed."""
    setattr(model, _TOKENIZER, tokenizer)


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that was left with the model, or None."""
    return getattr(model, _TOKENIZER, None)
