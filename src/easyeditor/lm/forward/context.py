"""``ForwardContext``: what an adapter needs to know of one forward pass, beside its tensors.

Which tokens are padding, where each row's prompt ends, and which patch each row asks about cannot
be read from a module's input. Whoever calls the model says it with :func:`forward_context` (one
pass) or :func:`generation_context` (a whole ``generate``); a pass without either, on a model that
carries adapters, gets a context derived from its attention mask and its cache.

A pass belongs to the prefill phase as long as it holds the last prompt token of its rows. What an
adapter decides there (:meth:`ForwardContext.decide`) holds for the row in every later pass over the
same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from easyeditor.lm.restoring import restoring

_CONTEXT = "easyedit_context"
_DERIVED = "easyedit_derived_context"
_HOOKS = "easyedit_context_hooks"
_GENERATION = "easyedit_forward_generation"
_DECODER_START = "easyedit_decoder_start"

Phase = Literal["prefill", "decode"]
PADS = ("pad", "eos")


@dataclass(frozen=True, slots=True, eq=False)
class ForwardContext:
    """The rows of one forward pass.

    Attributes:
        mask: ``(rows, columns)``, 1 where a token is read and 0 for padding; the columns are those
            of the cache, if there is one, and then those of this pass.
        prompt_end: ``(rows,)``, the column of each row's last prompt token.
        patch_of_row: ``(rows,)``, which of several patches each row asks about; None for one model
            for all rows.
        phase: ``"prefill"`` if the last prompt tokens are in this pass, else ``"decode"``.
        start: how many columns the cache holds; column ``c`` is position ``c - start`` of the
            module's input.
        decisions: what adapters have decided about these rows, shared by all passes of one
            generation.
    """

    mask: torch.Tensor
    prompt_end: torch.Tensor
    patch_of_row: torch.Tensor | None = None
    phase: Phase = "prefill"
    start: int = 0
    decisions: dict[Any, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.mask)

    @property
    def length(self) -> int:
        """Positions of this pass."""
        return self.mask.shape[1] - self.start

    def by_row(self, tensor: torch.Tensor) -> torch.Tensor:
        """A module's input or output as ``(rows, length, width)``; OPT's MLP has it flat."""
        return tensor.reshape(self.rows, -1, tensor.shape[-1])

    def at_prompt_end(self, tensor: torch.Tensor) -> torch.Tensor:
        """The vectors at the last prompt tokens, ``(rows, width)``; only in the prefill phase."""
        hidden = self.by_row(tensor)
        at = (self.prompt_end - self.start).to(hidden.device)
        return hidden[torch.arange(self.rows, device=hidden.device), at]

    def answering(self) -> torch.Tensor:
        """``(rows, length)``, True at the last prompt token and at every token after it.

        The outputs there predict the answer. Padding after a row is False.
        """
        columns = torch.arange(self.start, self.mask.shape[1], device=self.mask.device)
        after = columns[None] >= self.prompt_end.to(self.mask.device)[:, None]
        return after & self.mask[:, self.start :].bool()

    def prompt_tokens(self) -> torch.Tensor:
        """``(rows, length)``, True at the tokens of each row's prompt, its last one included."""
        columns = torch.arange(self.start, self.mask.shape[1], device=self.mask.device)
        until = columns[None] <= self.prompt_end.to(self.mask.device)[:, None]
        return until & self.mask[:, self.start :].bool()

    def decide(self, key: Any, decision: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``key`` decided about the rows ``(rows, …)`` at their prompts, computed once.

        In the decode phase the decision of the prefill phase is given again; rows that beam search
        has multiplied since then share their prompt's.
        """
        if self.phase == "prefill" or key not in self.decisions:
            self.decisions[key] = decision()
        known = self.decided(key)
        assert known is not None
        return known

    def decided(self, key: Any) -> torch.Tensor | None:
        """What :meth:`decide` said about ``key``, also at another module; None: nothing yet."""
        known: torch.Tensor | None = self.decisions.get(key)
        if known is not None and len(known) != self.rows:
            known = known.repeat_interleave(self.rows // len(known), 0)
        return known

    def only(self, rows: torch.Tensor) -> ForwardContext:
        """The context of some rows, which keep decisions of their own."""
        index = rows.to(self.mask.device)
        part: dict[Any, Any] = self.decisions.setdefault(("rows", *rows.tolist()), {})
        of_row = self.patch_of_row
        return replace(
            self,
            mask=self.mask[index],
            prompt_end=self.prompt_end[rows.to(self.prompt_end.device)],
            patch_of_row=None if of_row is None else of_row[rows.to(of_row.device)],
            decisions=part,
        )


def last_token(mask: torch.Tensor) -> torch.Tensor:
    """The column of each row's last token that is read, ``(rows,)``, whatever side is padded."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns * mask.bool()).amax(1)


@dataclass(frozen=True, slots=True, eq=False)
class _Generation:
    """The prompts of one ``generate``: every pass in it gets its context from them."""

    mask: torch.Tensor
    patch_of_row: torch.Tensor | None
    decisions: dict[Any, Any] = field(default_factory=dict)

    def context(self, mask: torch.Tensor, start: int) -> ForwardContext:
        rows = len(mask)
        end, of_row = last_token(self.mask), self.patch_of_row
        if rows != len(end):  # beams, or several continuations of one prompt
            end = end.repeat_interleave(rows // len(end))
            of_row = None if of_row is None else of_row.repeat_interleave(rows // len(of_row))
        phase: Phase = "decode" if start > int(end.max()) else "prefill"
        # Without a cache every pass holds the prompt, and decides the same again.
        return ForwardContext(mask, end.to(mask.device), of_row, phase, start, self.decisions)


@contextmanager
def _setting(model: nn.Module, value: ForwardContext | _Generation) -> Iterator[None]:
    former = vars(model).get(_CONTEXT)

    def undo() -> None:
        if former is None:
            vars(model).pop(_CONTEXT, None)
        else:
            vars(model)[_CONTEXT] = former

    with restoring(undo):
        vars(model)[_CONTEXT] = value
        yield


def forward_context(model: nn.Module, context: ForwardContext) -> Any:
    """A context manager: forward passes inside belong to ``context``.

    The trap: it is a state of the model, see :meth:`easyeditor.lm.model.LM.at_rest`: one thread at
    a time.
    """
    return _setting(model, context)


def generation_context(
    model: nn.Module, mask: torch.Tensor, patch_of_row: torch.Tensor | None = None
) -> Any:
    """A context manager: inside, ``generate`` continues the prompts of ``mask`` ``(rows, width)``.

    With it, generation without a cache knows where the prompts end.
    """
    return _setting(model, _Generation(mask, patch_of_row))


def current_context(model: nn.Module) -> ForwardContext | None:
    """The context of the pass that runs now, or None outside of one."""
    derived: ForwardContext | None = vars(model).get(_DERIVED)
    if derived is not None:
        return derived
    given = vars(model).get(_CONTEXT)
    return given if isinstance(given, ForwardContext) else None


def patch_of_row(model: nn.Module, rows: int | None = None) -> torch.Tensor | None:
    """Which patch each of the ``rows`` of the pass that runs now asks about, or None."""
    given = vars(model).get(_CONTEXT)
    index: torch.Tensor | None = None if given is None else given.patch_of_row
    if index is not None and rows is not None and len(index) != rows:
        index = index.repeat_interleave(rows // len(index))
    return index


def has_adapters(model: nn.Module) -> bool:
    """Whether the model carries adapters, which decide by each row's own prompt.

    The trap: what shares tokens between several prompts (one pass for all of them, a common
    prefix) is then not exact.
    """
    return _HOOKS in vars(model)


def forward_generation(model: nn.Module) -> int:
    """A number that changes whenever adapters are put on the model or taken off.

    Checks of how the model can be run (resumed, from a cache) hold for one such number.
    """
    return int(vars(model).get(_GENERATION, 0))


def derive_contexts(model: nn.Module, wanted: bool) -> None:
    """Give every pass of ``model`` a context from now on, or no longer; for who hooks adapters."""
    vars(model)[_GENERATION] = forward_generation(model) + 1
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        ours = [k for k, h in hooks.items() if isinstance(getattr(h, "__self__", 0), _Deriving)]
        for key in ours:
            model._forward_pre_hooks_with_kwargs.pop(key, None)
            model._forward_hooks_always_called.pop(key, None)
            del hooks[key]
    if wanted:
        deriving = _Deriving()
        model.register_forward_pre_hook(deriving.before, with_kwargs=True)
        model.register_forward_hook(deriving.after, always_call=True)
        vars(model)[_HOOKS] = True
    else:
        for name in (_HOOKS, _DERIVED, _DECODER_START):
            vars(model).pop(name, None)
    restore_generate(model)


def restore_generate(model: nn.Module) -> None:
    """Let the model's own ``generate`` say where its prompts end, if it carries adapters."""
    stands = vars(model).get("generate")
    if has_adapters(model) and stands is None:
        vars(model)["generate"] = _GenerateInContext(model)
    elif not has_adapters(model) and isinstance(stands, _GenerateInContext):
        del vars(model)["generate"]


def encoder_context(model: nn.Module, rows: int) -> ForwardContext | None:
    """The context of an encoder's pass, which ``generate`` makes before any pass of the model."""
    context, given = current_context(model), vars(model).get(_CONTEXT)
    if context is None and isinstance(given, _Generation):
        mask = given.mask
        if len(mask) != rows:
            mask = mask.repeat_interleave(rows // len(mask), 0)
        context = given.context(mask, 0)
    return None if context is None else replace(context, start=0, phase="prefill", decisions={})


def decoder_context(model: nn.Module, rows: int, length: int) -> ForwardContext | None:
    """The context of a decoder's pass: its prompt is its first position."""
    context = current_context(model)
    if context is None:
        return None
    start: int = vars(model).get(_DECODER_START, 0)
    device = context.mask.device
    return replace(
        context,
        mask=torch.ones(rows, start + length, dtype=torch.long, device=device),
        prompt_end=torch.zeros(rows, dtype=torch.long, device=device),
        phase="decode" if start else "prefill",
        start=start,
    )


def prompt_mask(model: Any, given: torch.Tensor) -> torch.Tensor:
    """The mask that the model's own ``generate`` assumes for prompts that come without one."""
    pad, end = (getattr(model.generation_config, f"{k}_token_id", None) for k in PADS)
    if pad is not None and pad != end and given.dim() == 2 and (given == pad).any():
        return given.ne(pad).long()
    return torch.ones(given.shape[:2], dtype=torch.long, device=given.device)


class _GenerateInContext:
    """Stands for ``model.generate`` while the model carries adapters."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, inputs: torch.Tensor | None = None, **options: Any) -> Any:
        """What the model's own ``generate`` gives."""
        model: Any = self._model
        prompts = [inputs, options.get("input_ids"), options.get("inputs_embeds")]
        given = next((prompt for prompt in prompts if prompt is not None), None)
        if inputs is not None:
            options["inputs"] = inputs
        mask = options.get("attention_mask")
        if given is None or isinstance(vars(model).get(_CONTEXT), _Generation):
            return type(model).generate(model, **options)
        if mask is None:
            mask = prompt_mask(model, given)
        with generation_context(model, mask):
            return type(model).generate(model, **options)


class _Deriving:
    """Hooks of a model: the context of a pass, from what was given or from its arguments."""

    def __init__(self) -> None:
        self._of_cache: WeakKeyDictionary[Any, tuple[torch.Tensor, dict[Any, torch.Tensor]]]
        self._of_cache = WeakKeyDictionary()

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Deriving:
        return _Deriving()

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given, cache = vars(model).get(_CONTEXT), kwargs.get("past_key_values")
        start = _cached(cache)
        vars(model)[_DECODER_START] = start
        if isinstance(given, ForwardContext):
            vars(model)[_DERIVED] = given
            return
        read = kwargs.get("input_ids", args[0] if args else None)
        read = kwargs.get("inputs_embeds") if read is None else read
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            start = 0  # the prompt is the encoder's
            state = kwargs.get("encoder_outputs")
            read = state[0] if read is None and state is not None else read
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            if read is None:
                vars(model).pop(_DERIVED, None)
                return
            shape = (read.shape[0], start + read.shape[1])
            mask = torch.ones(shape, dtype=torch.long, device=read.device)
        if isinstance(given, _Generation):
            vars(model)[_DERIVED] = given.context(mask, start)
            return
        known = self._of_cache.get(cache) if cache is not None and start else None
        if known is None:
            vars(model)[_DERIVED] = ForwardContext(mask, last_token(mask), start=start)
        else:
            end, decisions = known
            vars(model)[_DERIVED] = ForwardContext(mask, end, None, "decode", start, decisions)

    def after(self, model: nn.Module, _args: Any, output: Any) -> None:
        context = vars(model).pop(_DERIVED, None)
        cache = getattr(output, "past_key_values", None)
        if context is not None and cache is not None and context.phase == "prefill":
            self._of_cache[cache] = (context.prompt_end, context.decisions)


def _cached(cache: Any) -> int:
    """How many columns a cache holds."""
    length = getattr(cache, "get_seq_length", None)
    return 0 if length is None else int(length())
