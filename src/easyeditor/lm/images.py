"""What images become for a model: placeholders in its text, and pixel tensors."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from easyeditor.errors import ImageError, UnsupportedModelError
from easyeditor.lm.image_files import open_image
from easyeditor.lm.image_tokens import ImageToken, Instructed, Seen
from easyeditor.prompts import IMAGE, ImageRef, Prompt

CACHED_IMAGES = 32
"""So many images are kept as tensors; more are read again."""
_TEXT_INPUTS = frozenset(
    [
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "labels",
        "text_replacement_offsets",
        "cross_attention_mask",
        "qformer_input_ids",
        "qformer_attention_mask",
        "rows",
        "cols",
        "num_crops",
        "num_patches",
        "num_tiles",
        "batch_num_images",
    ]
)
_BEFORE_BOS = frozenset({"paligemma", "blip-2", "instructblip", "mllama"})
"""Models that read the placeholders before the token that begins a text."""
_PER_ROW = frozenset({"mllama"})
"""Models whose pixel tensors have a dimension of rows and one of images."""
_NESTED = frozenset({"idefics2", "idefics3", "smolvlm"})
"""Models whose pixel tensors have a dimension of rows that may be 1 for all images."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One image as a model reads it.

    Attributes:
        text: what takes the place of its placeholder, special tokens included.
        tensors: pixels and sizes, by the names of the model's arguments, as of a batch of one.
        features: how many placeholders ``text`` has.
    """

    text: str
    tensors: dict[str, torch.Tensor]
    features: int


class ImageReader:
    """Images for one model, through its processor.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        processor: what ``AutoProcessor`` gave, or anything that is called like one.

    Raises:
        UnsupportedModelError: the configuration names no token for images.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = tokenizer
        self.kind = str(model.config.model_type)
        token = getattr(model.config, "image_token_id", None)
        if token is None:
            token = getattr(model.config, "image_token_index", None)
        if token is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has a processor for images, and its configuration names "
                "no image_token_id; images cannot be placed in its text."
            )
        self.token_id = int(token)
        placeholder = getattr(processor, "image_token", IMAGE)
        self.placeholder = str(getattr(placeholder, "content", placeholder))
        self.begin = str(tokenizer.bos_token or "")
        inner = getattr(model, "model", model)
        self.plane = hasattr(inner, "get_rope_index")  # 3-D positions (M-RoPE)
        self.before_bos = self.kind in _BEFORE_BOS
        self.prefix_lm = self.kind == "paligemma"
        self.apart = self.kind in {"mllama", "blip-2", "instructblip"}
        self.writes_begin = self.kind in {"paligemma", "mllama"}
        self.instructs = getattr(processor, "qformer_tokenizer", None)
        self._readings: OrderedDict[ImageRef, Reading] = OrderedDict()
        self._places = re.compile("|".join(re.escape(p) for p in {IMAGE, self.placeholder}))

    def reading(self, image: Seen) -> Reading:
        """The image for this model; kept for the next time.

        Raises:
            ImageError: it cannot be read.
        """
        if isinstance(image, Instructed):
            assert self.instructs is not None
            plain = self.reading(image.image)
            words = self.instructs([image.text], return_tensors="pt")
            more = {f"qformer_{name}": words[name] for name in ("input_ids", "attention_mask")}
            return Reading(plain.text, {**plain.tensors, **more}, plain.features)
        if image in self._readings:
            self._readings.move_to_end(image)
            return self._readings[image]
        reading = self._read(open_image(image))
        self._readings[image] = reading
        if len(self._readings) > CACHED_IMAGES:
            self._readings.popitem(last=False)
        return reading

    def _read(self, picture: Any) -> Reading:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the processor's own code
            try:
                out = self.processor(images=[picture], text=[self.placeholder], return_tensors="pt")
            except Exception as error:  # of any type: a processor of another model, mostly
                raise ImageError(
                    f"The model's {type(self.processor).__name__} cannot read an image "
                    f"({type(error).__name__}: {error}). Is it this model's own processor? Give "
                    "AutoProcessor.from_pretrained(<the model>)."
                ) from error
        ids = out["input_ids"][0].tolist()
        if self.token_id not in ids:
            raise ImageError(
                f"The model's {type(self.processor).__name__} writes no token {self.token_id}, "
                "which the model takes for an image. Give the processor of this model: "
                "AutoProcessor.from_pretrained(<the model>)."
            )
        specials = set(self.tokenizer("")["input_ids"])
        while ids and ids[0] in specials and ids[0] != self.token_id:
            ids.pop(0)
        while ids and ids[-1] in specials and ids[-1] != self.token_id:
            ids.pop()
        first = ids.index(self.token_id)
        last = len(ids) - 1 - ids[::-1].index(self.token_id)
        if self.before_bos:
            ids = ids[first : last + 1]
            if self.kind in {"blip-2", "instructblip"}:  # the text's own placeholder comes on top
                ids = ids[: int(self.processor.num_query_tokens)]
        text = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        tensors = {
            name: value
            for name, value in out.items()
            if isinstance(value, torch.Tensor) and name not in _TEXT_INPUTS
        }
        return Reading(text, tensors, ids.count(self.token_id))

    # -- text -----------------------------------------------------------------------------

    def without_places(self, text: str) -> str:
        """The text without the placeholders of images, and the blanks behind them."""
        return re.sub(rf"(?:{self._places.pattern})[ \t]*", "", text)

    def check(self, prompt: Prompt, target: str, prefix: str = "") -> None:
        """Refuse a prompt that has places for another number of images than it has images.

        Raises:
            ImageError: it does, or target, system message or prefix have a place for an image.
        """
        for name, text in (("system message", prompt.system or ""), ("context", prefix)):
            if self._places.search(text):
                raise ImageError(
                    f"The {name} {text!r} of the prompt {prompt.text!r} holds the placeholder of "
                    f"an image; write {IMAGE} into the prompt's own text, where its images stand."
                )
        if self._places.search(target):
            raise ImageError(
                f"The target {target!r} holds the placeholder of an image, which a model reads and "
                "does not write; leave it out."
            )
        places = len(self._places.findall(prompt.text))
        if places and places != len(prompt.images):
            images = f"{len(prompt.images)} image{'s' * (len(prompt.images) != 1)}"
            raise ImageError(
                f"The prompt {prompt.text!r} has {places} placeholder{'s' * (places != 1)} and "
                f"{images}. Write one {IMAGE} where each image stands, or none: then they stand "
                "before the text."
            )

    def content(self, prompt: Prompt, prefix: str) -> tuple[str, int]:
        """``prefix`` and text with a place for every image, and where the prompt's text begins."""
        if not prompt.images or self._places.search(prompt.text):
            return prefix + prompt.text, len(prefix)
        lead = IMAGE * len(prompt.images)
        return lead + prefix + prompt.text, len(lead) + len(prefix)

    def expand(
        self, text: str, images: Sequence[ImageRef], span: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int] | None]:
        """``text`` with every place as the model's placeholders; the span moves with its words.

        Raises:
            ImageError: it has another number of places than there are images.
        """
        places = list(self._places.finditer(text))
        if len(places) != len(images):
            raise ImageError(
                f"The text as the model reads it has {len(places)} placeholders for {len(images)} "
                "images: the chat template drops or adds some. Ask with chat=False."
            )
        parts: list[str] = []
        done, moved = 0, 0
        start, end = span or (0, 0)
        new_start, new_end = start, end
        for place, image in zip(places, images, strict=True):
            instead = self.reading(image).text
            if self.kind == "idefics2" and not text[place.end() : place.end() + 1].isspace():
                instead += " "  # as its processor writes it
            parts += [text[done : place.start()], instead]
            moved += len(instead) - len(place.group())
            if place.end() <= start:
                new_start = start + moved
            if place.end() <= end:
                new_end = end + moved
            done = place.end()
        whole = "".join([*parts, text[done:]])
        return whole, None if span is None else (new_start, new_end)

    def placeholders_in(self, text: str, span: tuple[int, int]) -> tuple[int, int]:
        """The part of ``span``, where an image is expanded, from its first to its last placeholder.

        What a model writes around an image (``<end_of_image>``) is not of it.
        """
        token = str(self.tokenizer.convert_ids_to_tokens(self.token_id))
        return text.index(token, *span), text.rindex(token, *span) + len(token)

    def marked(self, ids: Sequence[int], prompt: Prompt, prompt_length: int) -> tuple[int, ...]:
        """The tokens, those of an image as :class:`ImageToken`.

        Raises:
            ImageError: the tokenizer did not keep every placeholder.
        """
        images = prompt.images
        counts = [self.reading(image).features for image in images]
        places = [i for i, token in enumerate(ids) if token == self.token_id]
        if len(places) != sum(counts):
            raise ImageError(
                f"{len(places)} placeholders came out of the tokenizer for {sum(counts)} features "
                f"of {len(images)} images: the tokenizer is not the one of this model's processor. "
                "Load both from the model's own folder."
            )
        result = list(ids)
        if self.prefix_lm:  # every token of the prompt attends to every other
            whole = (tuple(ids[:prompt_length]), tuple(image.sha256 for image in images))
            for i in range(prompt_length):
                first = images if i == 0 else ()
                result[i] = ImageToken.of(ids[i], hash(whole), i, prompt_length, first)
            return tuple(result)
        at = iter(places)
        for image, count in zip(images, counts, strict=True):
            seen: Seen = Instructed(image, prompt.text) if self.instructs else image
            unit: Hashable = (image.sha256, prompt.text) if self.instructs else image.sha256
            for k in range(count):
                i = next(at)
                result[i] = ImageToken.of(ids[i], unit, k, count, (seen,) if k == 0 else ())
        return tuple(result)

    # -- tensors --------------------------------------------------------------------------

    def inputs(
        self,
        ids: torch.Tensor,
        marks: torch.Tensor,
        images: Sequence[Sequence[Seen]],
        accepts: frozenset[str],
        like: torch.Tensor,
        device: torch.device,
    ) -> dict[str, torch.Tensor]:
        """The model's further arguments for a batch of rows with these images.

        Args:
            ids: the tokens, ``(rows, length)``.
            marks: 1 where a token is an image's (of a prefix language model: a prompt's).
            images: of each row.
            accepts: arguments of the model's forward.
            like: a weight, for the precision.
            device: where they go.
        """
        flat = [self.reading(image) for row in images for image in row]
        if not flat:
            return {}
        if self.kind in _PER_ROW:
            tensors = self._per_row(images)
        else:
            tensors = {
                name: _joined(
                    [reading.tensors[name] for reading in flat], 1 if self.kind in _NESTED else 0
                )
                for name in flat[0].tensors
            }
        if "mm_token_type_ids" in accepts:
            tensors["mm_token_type_ids"] = marks
        if "token_type_ids" in accepts:
            tensors["token_type_ids"] = 1 - marks if self.prefix_lm else marks
        if "cross_attention_mask" in accepts:
            tensors["cross_attention_mask"] = self._cross_attention(ids, images)
        return {
            name: tensor.to(device, like.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in tensors.items()
        }

    def positions(
        self,
        model: Any,
        ids: torch.Tensor,
        mask: torch.Tensor,
        marks: torch.Tensor,
        images: Sequence[Sequence[Seen]],
    ) -> torch.Tensor:
        """Positions in time, height and width, ``(3, rows, length)``, of a model that has such."""
        grids = [self.reading(image).tensors["image_grid_thw"] for row in images for image in row]
        grid = torch.cat(grids).to(ids.device)
        positions: torch.Tensor = model.model.get_rope_index(
            ids, mm_token_type_ids=marks, image_grid_thw=grid, attention_mask=mask
        )[0]
        return positions

    def _per_row(self, images: Sequence[Sequence[Seen]]) -> dict[str, torch.Tensor]:
        readings = [[self.reading(image).tensors for image in row] for row in images]
        names = next(row[0] for row in readings if row)
        most = max(map(len, readings))
        result = {}
        for name in names:
            one = next(row[0][name] for row in readings if row)
            shape = (len(images), most, *one.shape[2:])
            stacked = one.new_zeros(shape)
            for i, row in enumerate(readings):
                for k, tensors in enumerate(row):
                    stacked[i, k] = tensors[name][0, 0]
            result[name] = stacked
        return result

    def _cross_attention(self, ids: torch.Tensor, images: Sequence[Sequence[Seen]]) -> torch.Tensor:
        from transformers.models.mllama import processing_mllama as mllama

        rows = ids.tolist()
        masks = [mllama.get_cross_attention_token_mask(row, self.token_id) for row in rows]
        tiles = [
            [int(self.reading(image).tensors["aspect_ratio_mask"].sum()) for image in row]
            for row in images
        ]
        dense = mllama.convert_sparse_cross_attention_mask_to_dense(
            masks,
            num_tiles=tiles,
            max_num_tiles=int(self.processor.image_processor.max_image_tiles),
            length=ids.shape[1],
        )
        return torch.as_tensor(dense)


def _joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Tensors one behind the other; in other dimensions filled up with zeros to the largest."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        shape = [tensor.shape[i] if i == dim else size for i, size in enumerate(sizes)]
        if list(tensor.shape) != shape:
            larger = tensor.new_zeros(shape)
            larger[tuple(slice(0, n) for n in tensor.shape)] = tensor
            tensor = larger
        filled.append(tensor)
    return torch.cat(filled, dim)


@contextmanager
def keeping_position_offsets(model: nn.Module) -> Iterator[None]:
    """A context: what models with 3-D positions store on themselves in a pass is put back after it.

    They would shift the positions of the caller's next cached pass by it.
    """
    holders = [module for module in model.modules() if hasattr(module, "rope_deltas")]
    before = [module.rope_deltas for module in holders]
    try:
        yield
    finally:
        for module, value in zip(holders, before, strict=True):
            module.rope_deltas = value
