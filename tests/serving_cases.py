"""A tiny model with a patch of every kind, and its server in a thread."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

import synthetic
import tiny
from easyeditor import LM
from easyeditor.methods.ike.patch import Context, ContextPatch
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import Patch
from easyeditor.serving.names import ServedModels
from easyeditor.serving.server import open_socket, serving

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def model(template: str | None = TEMPLATE) -> LM:
    """A tiny model of its own whose tokenizer has a chat template."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = template
    result = LM(tiny.model("llama"), tokenizer)
    result.model.config._name_or_path = "tiny"
    return result


def module_patch(target: LM, seed: int = 3) -> ModulePatch:
    """A vector that is added to the output of the second block's MLP."""
    generator = torch.Generator().manual_seed(seed)
    vector = 0.2 * torch.randn(32, generator=generator)
    adapter = AddVector(vector)
    return ModulePatch({"model.layers.1.mlp": (adapter,)}, synthetic.info(target))


def route_patch(target: LM) -> ContextPatch:
    """A fact in front of every prompt."""
    context = Context("", "The Eiffel Tower is located in the city of Rome")
    return ContextPatch((context,), synthetic.info(target))


def patches(target: LM) -> dict[str, Patch]:
    """One of every kind, by the name it is served under."""
    return {
        "weights": synthetic.some_patch(target, 0),
        "modules": module_patch(target),
        "route": route_patch(target),
    }


@contextlib.contextmanager
def running(models: ServedModels, **options: Any) -> Iterator[str]:
    """The address of a server of these models."""
    opened = open_socket("127.0.0.1", 0)
    with opened, serving(models, **options) as (server, _engine):
        thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
        thread.start()
        end = time.monotonic() + 10
        while not server.started and time.monotonic() < end:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
