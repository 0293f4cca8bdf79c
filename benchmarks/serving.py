"""What serving costs: copies of a model, requests at once, shared passes.

``python benchmarks/serving.py`` prints one table in Markdown. It serves the embedded model with a
rank-one edit, and a ledger's worth of random rank-one patches at one layer. Seconds of requests are
processor seconds of this process, client and server together; of copies, seconds on the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from openai import OpenAI

from easyeditor.edits import Edit
from easyeditor.hyperparams import HyperParams
from easyeditor.ledger.database import update
from easyeditor.ledger.entries import EntryState
from easyeditor.ledger.ledger import Ledger, set_state
from easyeditor.ledger.live import create_for
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.patches.files import save_patch
from easyeditor.patches.parts import LowRank
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import weight_patch
from easyeditor.serving.names import ServedModels
from easyeditor.serving.server import open_socket, serving

SUBJECTS = ("Eiffel Tower", "Colosseum", "Louvre", "Kremlin", "Brandenburg Gate", "Big Ben")
PROMPTS = [f"The {name} is located in the city of" for name in SUBJECTS]


def random_patch(lm: LM, seed: int, size: float = 0.02) -> Patch:
    """A change of rank one at one layer, far smaller than an edit's."""
    projection = lm.projection(3)
    generator = torch.Generator().manual_seed(seed)
    u = size * torch.randn(projection.d_in, 1, generator=generator)
    v = size * torch.randn(1, projection.d_out, generator=generator)
    edit = Edit(f"Fact {seed} is", "so")
    return weight_patch(
        lm, "random", [edit], HyperParams(), {projection.path: (LowRank(u, v),)}, {}
    )


@contextmanager
def client_of(models: ServedModels, max_batch: int) -> Iterator[OpenAI]:
    """A client of a server in this process."""
    opened = open_socket("127.0.0.1", 0)
    with opened, serving(models, max_batch=max_batch) as (server, _engine):
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{opened.getsockname()[1]}/v1"
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client
        server.should_exit = True
        thread.join()


def ask(client: OpenAI, model: str, prompt: str, tokens: int) -> str:
    """A greedy continuation."""
    reply = client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0)
    return str(reply.choices[0].text)


def at_once(client: OpenAI, questions: Sequence[tuple[str, str]], tokens: int) -> list[str]:
    """All answers, asked for in as many threads."""
    answers = [""] * len(questions)

    def run(i: int) -> None:
        answers[i] = ask(client, *questions[i], tokens)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def measure_ledger(lm: LM, place: Path, edits: int) -> None:
    """Print what a ledger's edits cost when the server starts, and when it changes."""
    book = create_for(place / "book", lm)
    for seed in range(edits):
        add(book, random_patch(lm, seed))
    models = ServedModels(lm, ledger=book)
    name = f"{models.base}+ledger"
    rows = {
        "the unedited model": models.get(models.base),
        f"a ledger of {edits} edits, at the start": models.get(name),
    }
    add(book, random_patch(lm, edits))
    rows["the same after one more"] = models.get(name)
    book.undo([edits // 2])
    rows["the same after one in the middle was undone"] = models.get(name)
    for what, served in rows.items():
        print(f"| copy of {what} | {1000 * served.build_seconds:.0f} ms |")


def add(book: Ledger, patch: Patch) -> None:
    """Make an active entry of a patch that no method made."""
    number = book.propose([], "random", {})
    with book.locked():
        stored = book.patches.add(lambda file: save_patch(patch, file))
        with book.writing() as connection:
            stored.insert(connection, patch.kind)
            update(connection, number, {"patch": stored.digest})
            set_state(connection, number, EntryState.ACTIVE, "", "added", "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--edits", type=int, default=200)
    options = parser.parse_args()
    lm = load(options.model)
    print("| what | |\n|---|---|")
    with tempfile.TemporaryDirectory() as place:
        measure_ledger(lm, Path(place), options.edits)
    models = ServedModels(lm, patches={str(i): random_patch(lm, -i) for i in (1, 2)})
    names = models.names()[:3]
    questions = [(names[i % 3], PROMPTS[i % len(PROMPTS)]) for i in range(options.requests)]
    alone: list[str] = []
    for max_batch in (1, 8):
        with client_of(models, max_batch) as client:
            ask(client, names[0], PROMPTS[0], 1)
            start = time.process_time()
            if max_batch == 1:
                alone = [ask(client, *question, options.tokens) for question in questions]
                spent = time.process_time() - start
                print(f"| {len(questions)} requests one after the other | {spent:.1f} s |")
            start = time.process_time()
            together = at_once(client, questions, options.tokens)
            spent = time.process_time() - start
            same = sum(a == b for a, b in zip(alone, together, strict=True))
            print(
                f"| {len(questions)} at once, --max-batch {max_batch} | {spent:.1f} s, "
                f"{same} of {len(questions)} texts as alone |"
            )


if __name__ == "__main__":
    main()
