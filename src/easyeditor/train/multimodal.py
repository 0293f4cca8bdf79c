"""``MultimodalTrainer``: the trainer for models that see."""

from __future__ import annotations

from easyeditor.errors import UnsupportedModelError
from easyeditor.lm.model import LM
from easyeditor.train.trainer import EditTrainer


class MultimodalTrainer(EditTrainer):
    """Trains what a method learns beside a model that sees, on cases with images.

    A case is learnt with each of its rephrases (other words, another image of the same thing) and
    each of its localities (text, images) in turn, so that both weigh the same. See
    :class:`~easyeditor.train.trainer.EditTrainer` for the arguments and the files it writes.

    Raises:
        UnsupportedModelError: when it runs: the model sees no images.
    """

    def load(self) -> LM:
        """The base model, which must see."""
        lm = super().load()
        if lm.images is None:
            if lm.text.unseen is not None:
                raise lm.text.unseen
            raise UnsupportedModelError(
                f"{lm.name} reads text alone. Train beside a model that sees, e.g. 'flags-135m', "
                "or with EditTrainer."
            )
        return lm
