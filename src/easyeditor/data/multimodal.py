"""E-VQA, E-IC and VLKEB: edits of what a vision–language model says about a picture.

All three share one flat record; the pictures lie in folders that the files do not hold. They are
read late: a dataset keeps paths and digests, never pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, probe
from easyeditor.data.prompts import inside
from easyeditor.edits import Case, Edit, ImageRef, Probe, Prompt
from easyeditor.errors import DataError, ImageError

CHECKED = 3
"""So many records' images are opened when a dataset is made: a missing folder shows at once."""


class MultimodalDataset(CaseDataset):
    """Records with ``src``, ``alt``, ``image`` and probes of text and of images.

    ``src`` about ``image`` is edited to ``alt``; ``pred`` is what BLIP-2 said, not a truth.
    ``rephrase`` is asked about the same image (``rephrase/text``), ``src`` about
    ``image_rephrase`` (``rephrase/image``). ``loc`` with ``loc_ans`` must stay without an image,
    ``m_loc_q`` with ``m_loc_a`` about ``m_loc``; ``src`` about ``m_loc``'s picture must stay, too
    (``locality/same_question``: the answer is not known, so the unedited model's own counts).
    ``port_new`` is asked about ``image``.

    Args:
        path: the file.
        size: use only the first so many records.
        config: a classic configuration with ``coco_image`` and ``rephrase_image``, or None.
        images: the folder that the records' paths start in; by default the file's own.
        rephrase_images: the folder of ``image_rephrase``; by default ``images``.
        template: how a question is asked, with ``{}`` for it; by default as it is written.

    Raises:
        DataError: one of the first records' images cannot be read; names file, record and image.
    """

    name = "multimodal"
    title = "E-VQA, E-IC and VLKEB: questions about pictures"
    probes = (
        "rephrase/text",
        "rephrase/image",
        "locality/text",
        "locality/image",
        "locality/same_question",
        "portability/one_hop",
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        config: Any = None,
        *,
        images: str | os.PathLike[str] | None = None,
        rephrase_images: str | os.PathLike[str] | None = None,
        template: str = "{}",
    ) -> None:
        super().__init__(path, size, config)
        images = images or getattr(config, "coco_image", None)
        rephrase_images = rephrase_images or getattr(config, "rephrase_image", None)
        self.images = Path(images) if images else self.path.parent
        self.rephrase_images = Path(rephrase_images) if rephrase_images else self.images
        if template.count("{}") != 1:
            raise DataError(f"template={template!r} must hold {{}} once, where the question goes.")
        self.template = template
        for index in range(min(CHECKED, len(self))):
            problem = self.problem(index)
            if problem:
                raise DataError(
                    f"{self.path}, {self.place(index)}: {problem} The folder of the images is "
                    f"{str(self.images)!r}; give another with images=."
                )

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has ``src``, ``alt`` and ``image``."""
        return {"src", "alt", "image"} <= set(record)

    def problem(self, index: int) -> str:
        """Why the images of a record cannot be read; empty where they can."""
        from easyeditor.lm.image_files import open_image  # imports torch

        record = Fields(self._records[index].value)
        for name in ("image", "image_rephrase", "m_loc"):
            if name in record:
                try:
                    open_image(self._reference(record, name))
                except (DataError, ImageError) as error:
                    return f"{name}: {error}"
        return ""

    def problems(self) -> dict[int, str]:
        """The numbers of the records whose images cannot be read, with the reason of each."""
        reasons = {index: self.problem(index) for index in range(len(self))}
        return {index: reason for index, reason in reasons.items() if reason}

    def _reference(self, record: Fields, name: str) -> ImageRef:
        folder = self.rephrase_images if name == "image_rephrase" else self.images
        return ImageRef.of(inside(folder, record.text(name)))

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        image = (self._reference(record, "image"),)
        question = record.text("src")
        target = record.text("alt").strip()
        prompt = Prompt(self.template.format(question), image)
        probes: list[Probe] = []
        if "rephrase" in record:
            other = Prompt(self.template.format(record.text("rephrase")), image)
            probes.append(Probe(other, (target,), "rephrase/text"))
        if "image_rephrase" in record:
            seen = Prompt(prompt.text, (self._reference(record, "image_rephrase"),))
            probes.append(Probe(seen, (target,), "rephrase/image"))
        if "loc" in record:
            probes += probe("locality/text", record.text("loc"), record.answers("loc_ans"))
        if "m_loc" in record:
            near = (self._reference(record, "m_loc"),)
            answers = record.answers("m_loc_a")
            other = Prompt(self.template.format(record.text("m_loc_q")), near)
            if answers:
                probes.append(Probe(other, answers, "locality/image"))
            if near != image:
                same = Prompt(prompt.text, near)
                probes.append(Probe(same, (target,), "locality/same_question"))
        for hop in self._hops(record):
            about = Prompt(self.template.format(hop.text("port_q", "Q")), image)
            probes.append(Probe(about, hop.answers("port_a"), "portability/one_hop"))
        edit = Edit(prompt, target, ground_truth=record.maybe("pred"))
        return Case(case_id(record.raw, index) or str(index), edit, tuple(probes))

    @staticmethod
    def _hops(record: Fields) -> list[Fields]:
        """The questions of ``port_new``, which nests them as ``Q&A`` or has them flat."""
        hops = [hop.object("Q&A") if "Q&A" in hop else hop for hop in record.objects("port_new")]
        return [hop for hop in hops if "port_q" in hop or "Q" in hop]


class VQADataset(MultimodalDataset):
    """E-VQA of MMEdit (Cheng et al. 2023, arXiv 2310.08475); see :class:`MultimodalDataset`."""

    title = "E-VQA: answers to questions about pictures"


class CaptionDataset(MultimodalDataset):
    """E-IC of MMEdit: captions of pictures; see :class:`MultimodalDataset`."""

    title = "E-IC: captions of pictures"


class VLKEBDataset(MultimodalDataset):
    """VLKEB (Huang et al. 2024, arXiv 2403.07350): entities in pictures, with portability."""

    title = "VLKEB: entities in pictures"
