"""Text to tokens: prompt and target joined once, positions found by character offsets.

One function, :meth:`Text.row`, builds every token sequence the project feeds to a model, so a
space, a BOS token or a padding rule is decided in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from easyeditor.edits import IMAGE, Prompt, as_prompt
from easyeditor.errors import (
    EasyEditError,
    EditError,
    HyperParamsError,
    ImageError,
    ModelLoadError,
)
from easyeditor.joining import BLANKS, separator
from easyeditor.lm.chat_template import MARK, ChatTemplate
from easyeditor.lm.image_tokens import ImageToken, Seen, images_of
from easyeditor.lm.images import ImageReader
from easyeditor.subjects import locate_subject

_TOKENIZER = "easyedit_tokenizer"
_PROCESSOR = "easyedit_processor"


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
    """Padded rows.

    Attributes:
        ids: the tokens, ``(rows, length)``.
        mask: 1 for every real one, and for those of a cache before them.
        positions: ``(rows, length)``; ``(3, rows, length)`` where images have places in a plane.
        marks: 1 where a token is an image's; None without images.
        images: of each row; empty without images.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    marks: torch.Tensor | None = None
    images: tuple[tuple[Seen, ...], ...] = ()

    def rows(self, index: torch.Tensor) -> Batch:
        """The rows with these numbers, in this order; one may come several times."""
        at = index.to(self.ids.device)
        return Batch(
            self.ids[at],
            self.mask[at],
            self.positions[..., at, :],
            None if self.marks is None else self.marks[at],
            tuple(self.images[i] for i in index.tolist()) if self.images else (),
        )

    def after(self, tokens: torch.Tensor, *, cached: bool) -> Batch:
        """What reads one more token ``(rows, 1)`` of every row.

        With a cache the token alone, in the place behind the last; else the whole again.
        """
        mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        last = self.positions[..., -1:]
        if last.dim() == 3:  # an image takes less of a line than of a plane
            last = self.positions.amax((0, 2), keepdim=True).expand(3, -1, -1)
        if cached:
            return Batch(tokens, mask, last + 1)
        marks = self.marks
        if marks is not None:
            marks = torch.cat([marks, torch.zeros_like(tokens)], 1)
        ids = torch.cat([self.ids, tokens], 1)
        return Batch(ids, mask, torch.cat([self.positions, last + 1], -1), marks, self.images)


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


def with_images(batch: Batch, sequences: Sequence[Sequence[int]], *, left: bool = False) -> Batch:
    """The padded ``sequences`` with the images that their placeholders stand for."""
    images = tuple(images_of(sequence) for sequence in sequences)
    if not any(images):
        return batch
    marks = torch.zeros_like(batch.ids)
    for i, sequence in enumerate(sequences):
        start = batch.ids.shape[1] - len(sequence) if left else 0
        places = [start + k for k, token in enumerate(sequence) if isinstance(token, ImageToken)]
        marks[i, places] = 1
    return replace(batch, marks=marks, images=images)


class Text:
    """A tokenizer with the project's rules for joining, offsets and special tokens.

    Args:
        tokenizer: a fast Hugging Face tokenizer (character offsets are needed).
        encoder_decoder: whether prompt and target go to different sides.
        chat_template: wrap prompts by the tokenizer's own template, as one user turn.
        images: reads images for the model; None for a model that sees none.

    Attributes:
        chat: writes turns by the tokenizer's template.
        unseen: why a model that could see images cannot here.

    Raises:
        ModelLoadError: the tokenizer gives no offsets, or has no chat template to apply.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        encoder_decoder: bool,
        chat_template: bool,
        images: ImageReader | None = None,
    ) -> None:
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
        self.images = images
        self.unseen: EasyEditError | None = None
        self.chat = ChatTemplate(tokenizer)

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

        Images stand where the prompt has a placeholder for each, else before everything else. The
        places of the subject :data:`~easyeditor.prompts.IMAGE` are the last image's placeholders.

        Raises:
            EditError: the prompt has a system message that no template takes, or the template
                drops the text.
            ImageError: it has images and the model sees none, an image cannot be read, or there
                is another number of placeholders.
            SubjectNotFoundError: the subject does not occur in the prompt.
        """
        prompt = as_prompt(prompt)
        self._check_readable(prompt, target, prefix)
        content, begin = prefix + prompt.text, len(prefix)
        if self.images is not None:
            content, begin = self.images.content(prompt, prefix)
        trimmed = content if prompt.raw else content.rstrip(BLANKS) or content
        chat = self._as_chat(prompt)
        text, start = self._render(trimmed, prompt, chat=chat)
        span = None
        if subject is not None:
            low, high = _subject_span(prompt, content, subject, begin)
            span = (start + low, start + high)
        specials = not chat
        if self.images is not None and prompt.images:
            text, span = self.images.expand(text, prompt.images, span)
            if span is not None and subject == IMAGE:
                span = self.images.placeholders_in(text, span)
            text, span, specials = self._laid_out(text, span, specials=specials)
        if self.encoder_decoder:
            ids, offsets = self._encode(text, prompt, keep_end=True, specials=specials)
            labels = tuple(self.tokenizer(text_target=target)["input_ids"]) if target else ()
            if labels and labels[-1] == self.tokenizer.eos_token_id:
                labels = labels[:-1]
            return Row(ids, labels, *self._ends(offsets, span))
        if prompt.raw or (text[-1:].isspace() and (chat or not specials)):
            gap = ""
        else:
            gap = separator(text if chat else content, target)
        ids, offsets = self._encode(
            text + gap + target, prompt, keep_end=False, specials=specials, end=len(text)
        )
        begin = len(ids)
        if target:  # a space that is a token of its own belongs to the target, too
            begin = next(i for i, (_, high) in enumerate(offsets) if high > len(text))
            if not gap and not target[0].isspace():
                alone, of_prompt = self._encode(text, prompt, keep_end=False, specials=specials)
                if ids[:begin] != alone:  # a token across the border
                    return Row(
                        alone + (tail := self._continuation(target) or ids[begin:]),
                        tail,
                        *self._ends(of_prompt, span),
                    )
        return Row(ids, ids[begin:], *self._ends(offsets, span))

    def _laid_out(
        self, text: str, span: tuple[int, int] | None, *, specials: bool
    ) -> tuple[str, tuple[int, int] | None, bool]:
        """Images before the token that begins a text, for models that read them so."""
        reader = self.images
        assert reader is not None
        if not reader.before_bos or not specials:
            return text, span, specials
        cut = text.rfind(reader.placeholder) + len(reader.placeholder)
        begin = reader.begin if reader.writes_begin or self.tokenizer("")["input_ids"] else ""
        if span is not None and span[0] >= cut:
            span = (span[0] + len(begin), span[1] + len(begin))
        end = "\n" if reader.prefix_lm else ""
        return f"{text[:cut]}{begin}{text[cut:]}{end}", span, False

    def _check_readable(self, prompt: Prompt, target: str, prefix: str) -> None:
        if self.images is not None:
            self.images.check(prompt, target, prefix)
        elif prompt.images and self.unseen is not None:
            raise self.unseen
        elif prompt.images:
            images = f"{len(prompt.images)} image{'s' * (len(prompt.images) != 1)}"
            raise ImageError(
                f"The prompt {prompt.text!r} has {images}, and this model reads text "
                "alone. Give the text without images, or load a model that sees (easyedit models "
                "says which do) with its processor."
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

    def with_end(self, row: Row) -> Row:
        """The row with the end-of-sequence token at the end of its target, once.

        Raises:
            HyperParamsError: the tokenizer has no such token.
        """
        end = self.tokenizer.eos_token_id
        if end is None:
            raise HyperParamsError(
                "append_eos=True, but this tokenizer has no end-of-sequence token."
            )
        if row.target[-1:] == (end,):  # the target's text writes it
            return row
        ids = row.ids if self.encoder_decoder else (*row.ids, end)
        return replace(row, ids=ids, target=(*row.target, end))

    def plain(self, text: str) -> tuple[int, ...]:
        """Tokens of running text: BOS where the tokenizer adds one, never a chat template."""
        return self._encode(text, None, keep_end=False, specials=True)[0]

    def _render(self, content: str, prompt: Prompt, *, chat: bool) -> tuple[str, int]:
        """The text to tokenise and where ``content`` starts in it."""
        if not chat:
            return content, 0
        before = self._wrap(MARK, prompt.system).partition(MARK)[0]
        text = self._wrap(content, prompt.system)
        start = len(before)
        if not text.startswith(content, start):  # the template trims what it is given
            start -= len(content) - len(content.lstrip())
        return text, start

    def _wrap(self, content: str, system: str | None) -> str:
        turns = [] if system is None else [{"role": "system", "content": system}]
        return self.chat.write([*turns, {"role": "user", "content": content}])

    def _encode(
        self,
        text: str,
        prompt: Prompt | None,
        *,
        keep_end: bool,
        specials: bool,
        end: int | None = None,
    ) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Tokens with their characters; of a prompt with images marked up to character ``end``."""
        # A template writes its own BOS, so the tokenizer must not add a second one.
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=specials)
        ids, offsets = list(encoded["input_ids"]), [tuple(o) for o in encoded["offset_mapping"]]
        last = self.tokenizer.eos_token_id
        while not keep_end and ids and ids[-1] == last and offsets[-1][0] == offsets[-1][1]:
            ids.pop()
            offsets.pop()
        if self.images is not None and prompt is not None and prompt.images:
            inside = [i for i, (_, high) in enumerate(offsets) if end is None or high <= end]
            return self.images.marked(ids, prompt, len(inside)), offsets
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


def _subject_span(prompt: Prompt, content: str, subject: str, begin: int) -> tuple[int, int]:
    """The subject's characters in ``content``, which has the prompt's text from ``begin`` on.

    An image's are those of its place, which stands in front of the text where the prompt has none.
    """
    if subject == IMAGE and prompt.images and IMAGE in content:
        last = content.rfind(IMAGE)
        return last, last + len(IMAGE)
    place = locate_subject(prompt.text, subject)
    return begin + place.start, begin + place.end


def attach_tokenizer(model: nn.Module, tokenizer: Any, processor: Any = None) -> None:
    """Leave the tokenizer with the model; its own ``generate`` needs it while it is routed."""
    setattr(model, _TOKENIZER, tokenizer)
    setattr(model, _PROCESSOR, processor)


def processor_of(model: nn.Module) -> Any:
    """The processor of images that was left with the model, or None."""
    return getattr(model, _PROCESSOR, None)


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that was left with the model, or None."""
    return getattr(model, _TOKENIZER, None)
