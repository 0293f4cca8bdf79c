"""``MultimodalEditor``: edit what a vision–language model says about a picture.

The classic calls over :class:`~easyeditor.editors.base.BaseEditor`: the same session, patches, undo
and files; prompts become :class:`~easyeditor.edits.Prompt` with images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from typing_extensions import Unpack

from easyeditor.editors.base import BaseEditor
from easyeditor.editors.options import RequestOptions, classic_options, how_to_edit
from easyeditor.editors.recording import EditRecord
from easyeditor.editors.requests import Nested, Texts, make_cases
from easyeditor.editors.result import EditResult
from easyeditor.edits import Case, ImageRef, Probe, Prompt, as_prompt
from easyeditor.errors import EditError, ImageError, UnsupportedModelError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.image_files import open_image
from easyeditor.lm.model import LM

Images = Any
"""A path, a PIL image, an :class:`~easyeditor.edits.ImageRef`; a list: one per prompt."""


class MultimodalEditor(BaseEditor):
    """A vision–language model with a method to edit it.

    :meth:`from_hparams` loads model and processor; :meth:`from_pretrained` takes a model in memory
    with its processor. The trap: :meth:`edit` measures each edit alone and leaves the caller's
    model as it is, unless ``sequential_edit=True``; :class:`BaseEditor` keeps its edits.

    Raises:
        UnsupportedModelError: the model sees no images, or its processor is missing.
        MissingExtraError: its processor needs a package that is not installed.
    """

    def __init__(
        self, lm: LM, hparams: HyperParams, *, ledger: str | Path | EditRecord | None = None
    ) -> None:
        super().__init__(lm, hparams, ledger=ledger)
        if lm.images is None:
            if lm.text.unseen is not None:
                raise lm.text.unseen
            raise UnsupportedModelError(
                f"{lm.name} ({type(lm.model).__name__}) reads text alone. Load a model that sees, "
                "e.g. 'flags-135m', or edit this one with BaseEditor."
            )

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        tokenizer: Any,
        hparams: HyperParams,
        *,
        ledger: str | Path | EditRecord | None = None,
    ) -> MultimodalEditor:
        """Edit a model that is in memory.

        Args:
            model: used as it is, on its own device.
            tokenizer: its *processor* (``AutoProcessor.from_pretrained(...)``), which holds the
                tokenizer.
            hparams: the method's settings.
            ledger: see :class:`BaseEditor`.
        """
        processor, tokenizer = tokenizer, getattr(tokenizer, "tokenizer", tokenizer)
        if processor is tokenizer:
            processor = None
        chat = getattr(hparams, "chat_template", False)
        return cls(
            LM(model, tokenizer, chat_template=chat, processor=processor), hparams, ledger=ledger
        )

    def edit(  # type: ignore[override]  # the classic order of arguments
        self,
        prompts: Texts | None = None,
        targets: Texts | None = None,
        image: Images = None,
        file_type: str | None = None,
        rephrase_prompts: Nested | None = None,
        rephrase_image: Images = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        keep_images: Sequence[Any] | None = None,
        keep_original_weight: bool | None = None,
        verbose: bool = True,
        **options: Unpack[RequestOptions],
    ) -> EditResult:
        """Make the model say each target after its prompt about its image, and measure.

        Args:
            prompts: one text or a list.
            targets: the new answers, one per prompt.
            image: what each prompt is about; an entry may be a list of images.
            file_type: the classic ``"image"``; videos cannot be read.
            rephrase_prompts: other wordings about the same image.
            rephrase_image: another image of the same thing, asked with the same prompt.
            locality_inputs: what must not change: ``{"text": {"prompt", "ground_truth"}, "vision":
                {"image", "prompt", "ground_truth"}}``; any names, with or without images.
            portability_inputs: the same for what should follow.
            keep_images: images of other things; what the model says after each prompt about them
                is left alone while the edit is made (:attr:`Edit.keep`), by FT, LoRA and ROME.
                Without any, most edits learn the question for all pictures.
            keep_original_weight: True, and the default: each edit alone. ``sequential_edit=True``
                lets them accumulate on the caller's model.
            verbose: log each edit's scores.
            options: as of :meth:`BaseEditor.edit`.

        Raises:
            EditError: what was asked cannot be carried out; nothing was changed.
            ImageError: an image cannot be read; nothing was changed.
        """
        if file_type not in {None, "image", "text", "single-image", "multi-image"}:
            raise EditError(f"file_type={file_type!r}: only images can be read, and no videos yet.")
        if keep_original_weight is None:
            keep_original_weight = options.get("sequential_edit") is None
        named, keep = classic_options(options, keep_original_weight)
        named.setdefault("force", False)
        known = {"subject", "target_neg"}
        lists: dict[str, Any] = {
            "subject": named.get("subject"),
            "rejected": named.get("target_neg"),
            "locality_inputs": _blocks("locality", locality_inputs),
            "portability_inputs": _blocks("portability", portability_inputs),
        }
        for name in known & set(named):
            named.pop(name)  # type: ignore[misc]
        missing = [n for n, v in (("prompts", prompts), ("targets", targets)) if v is None]
        if missing:
            raise EditError(f"There is nothing to edit: give {' and '.join(missing)}.")
        questions = _with_images("image", prompts, image)
        rephrased = _with_images("image", rephrase_prompts, image) if rephrase_prompts else None
        cases = make_cases(questions, cast(Texts, targets), rephrase_prompts=rephrased, **lists)
        if rephrase_image is not None:
            other = _one_each("rephrase_image", rephrase_image, len(cases))
            cases = [_rephrased(case, ref) for case, ref in zip(cases, other, strict=True)]
        if keep_images is not None:
            others = references("keep_images", list(keep_images))
            cases = [_keeping(case, others) for case in cases]
        check_images(cases)
        return self.edit_cases(cases, **how_to_edit(keep, verbose, named))

    def edit_cases(self, cases: Sequence[Case], **options: Any) -> EditResult:
        """As of :class:`BaseEditor`, after every image has been opened once.

        Raises:
            ImageError: an image cannot be read; nothing was changed.
        """
        check_images(cases)
        return super().edit_cases(cases, **options)


class MultiModalEditor(MultimodalEditor):
    """:class:`MultimodalEditor` under its other spelling."""


def check_images(cases: Sequence[Case], where: Sequence[str] | None = None) -> None:
    """Open every image of the cases once, so that a broken one is found before any edit.

    Args:
        cases: what is checked.
        where: the place of each case, which an error begins with; None: its id.

    Raises:
        ImageError: names the case and the image.
    """
    checked: set[ImageRef] = set()
    for i, case in enumerate(cases):
        prompts = [row.prompt for edit in case.edits for row in edit.rows]
        prompts += [probe.prompt for probe in case.probes]
        prompts += [prompt for edit in case.edits for prompt in edit.keep]
        for image in (image for prompt in prompts for image in prompt.images):
            if image not in checked:
                try:
                    open_image(image)
                except ImageError as error:
                    place = f"Case {case.id}" if where is None else where[i]
                    raise ImageError(f"{place}: {error}" if place else str(error)) from None
                checked.add(image)


def references(name: str, given: Images) -> tuple[ImageRef, ...]:
    """The image references of one entry: one image, or a list of them.

    Raises:
        ImageError: something is no image.
    """
    if given is None:
        return ()
    entries = given if isinstance(given, (list, tuple)) else [given]
    try:
        return tuple(ImageRef.of(entry) for entry in entries)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


def _one_each(name: str, given: Images, n: int) -> list[tuple[ImageRef, ...]]:
    """One entry per prompt; a single image for a single prompt."""
    if given is None:
        return [()] * n
    entries = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(entries) != n:
        if n == 1:  # several images of one prompt
            return [references(name, entries)]
        raise EditError(f"{name} holds {len(entries)} entries for {n} edits; give one per prompt.")
    return [references(name, entry) for entry in entries]


def _with_images(name: str, texts: Any, images: Images) -> Any:
    """The texts as prompts with their images; entries that are prompts keep their own."""
    if isinstance(texts, (str, Prompt)):
        return _seen(texts, _one_each(name, images, 1)[0])
    columns = list(texts)
    refs = _one_each(name, images, len(columns))
    return [_seen(entry, seen) for entry, seen in zip(columns, refs, strict=True)]


def _seen(entry: Any, images: tuple[ImageRef, ...]) -> Any:
    if isinstance(entry, (list, tuple)):
        return [_seen(one, images) for one in entry]
    if entry is None:
        return None
    prompt = as_prompt(entry)
    return prompt if prompt.images or not images else replace(prompt, images=images)


def _blocks(group: str, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Blocks whose prompts have their images; the classic name ``vision`` is ``image`` here."""
    if not isinstance(given, Mapping):
        return given
    if "vision" in given and "image" in given:
        raise EditError(
            f"{group}_inputs has both 'vision' and 'image', which are two names of one block; give "
            "one of them, or another name to the other."
        )
    blocks = {}
    for name, block in given.items():
        if isinstance(block, Mapping) and block.get("image") is not None and "prompt" in block:
            where = f"{group}_inputs[{name!r}]['image']"
            block = {
                "prompt": _with_images(where, block["prompt"], block["image"]),
                **{key: value for key, value in block.items() if key not in {"prompt", "image"}},
            }
        blocks["image" if name == "vision" else name] = block
    return blocks


def _keeping(case: Case, images: Sequence[ImageRef]) -> Case:
    """The case whose edit keeps its question about these images."""
    prompt = case.edit.prompt
    prompts = tuple(replace(prompt, images=(image,)) for image in images)
    return replace(case, edit=replace(case.edit, keep=(*case.edit.keep, *prompts)))


def _rephrased(case: Case, images: tuple[ImageRef, ...]) -> Case:
    """The case with its own question about another image of the same thing."""
    if not images:
        return case
    prompt = replace(case.edit.prompt, images=images)
    probe = Probe(prompt, (case.edit.target,), "rephrase/image")
    return replace(case, probes=(*case.probes, probe))
