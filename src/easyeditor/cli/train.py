"""``easyedit train``: train what a method learns, beside a model that is only read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import DONE, add
from easyeditor.cli.terminal import count, quoted

if TYPE_CHECKING:
    from easyeditor.edits import Case
    from easyeditor.train.trainer import TrainingResult

EXAMPLES = r"""
Examples:

  easyedit train --method mend --data zsre_mend_train.json \
    --val zsre_mend_eval.json --model gpt2-xl

  easyedit train --method mend --data zsre.json \
    --set max_iters=400 --set val_interval=100 --json

  easyedit train --method mend --data zsre.json --resume

Several devices: accelerate launch --no_python easyedit train --data zsre.json ...

Exit codes: 0 done, 2 bad input.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, train, epilog=EXAMPLES)


def train(
    data: Annotated[
        Path,
        typer.Option(help="Cases with a rephrase and a locality probe: ZsRE, CounterFact, …"),
    ],
    val: Annotated[
        Path | None,
        typer.Option(help="Held-out cases; by default a seeded share of --data is held out."),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="The share that is held out without --val.")
    ] = 0.1,
    method: options.LearningMethod = "MEND",
    model: options.MaybeModel = None,
    hparams: options.Hparams = None,
    set_: options.Settings = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder that becomes OUT/METHOD/MODEL/…"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that broke off.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train what a method learns; prints where the archive is and how to edit with it."""
    if out is not None:
        places.check_folder(out, empty=False)

    from easyeditor.data.open import open_dataset

    for file in filter(None, (data, val)):
        open_dataset(file)  # says what is wrong with it before torch is imported

    from easyeditor.methods.training import training_class_of

    settings = options.settings_as(lambda: training_class_of(method), model, hparams, set_)
    settings = options.loaded_as(settings, device=device, dtype=dtype)
    if out is not None:
        settings = settings.replace(results_dir=str(out))
    learn, held_out = _cases(data, val, share, settings.seed)

    from easyeditor.train.trainer import EditTrainer

    trainer = EditTrainer(settings, learn, held_out)
    trainer.check(resume=resume)
    with output.loading(settings.model_name):
        trainer.load()
    result = trainer.run(resume=resume)
    if trainer.is_main:
        _show(method, settings.model_name, len(learn), len(held_out), result, as_json)
    raise typer.Exit(DONE)


def _cases(data: Path, val: Path | None, share: float, seed: int) -> tuple[list[Case], list[Case]]:
    import random

    from easyeditor.data.open import open_dataset
    from easyeditor.errors import DataError

    cases = list(open_dataset(data))
    if val is not None:
        return cases, list(open_dataset(val))
    if len(cases) < 2:
        raise DataError(f"{data} holds {len(cases)} case: too few to hold one out; give --val.")
    count = max(1, round(share * len(cases)))
    chosen = set(random.Random(seed).sample(range(len(cases)), count))
    return (
        [case for i, case in enumerate(cases) if i not in chosen],
        [case for i, case in enumerate(cases) if i in chosen],
    )


def _show(
    method: str, model: str, learnt: int, held_out: int, result: TrainingResult, as_json: bool
) -> None:
    archive = quoted(f"archive={result.path}")
    use = f"easyedit edit --method {method.lower()} --model {quoted(model)} --set {archive}"
    if as_json:
        document = {
            "method": method,
            "model": model,
            "archive": str(result.path),
            "cases": {"train": learnt, "val": held_out},
            "metrics": dict(result.metrics),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "log": str(result.log),
            "curve": str(result.curve) if result.curve else None,
            "use": use,
        }
        output.print_json(document)
        return
    columns = [output.Column(name, right=True) for name in result.metrics]
    numbers = [f"{value:.3f}" for value in result.metrics.values()]
    output.show(f"{count(held_out, 'held-out case')}", columns, [numbers])
    where = f"Archive: {result.path}\nLog:     {result.log}\n"
    where += f"Curve:   {result.curve}\n" if result.curve else ""
    output.out.print_line(
        f"{count(result.steps, 'step')} in {result.seconds:.0f} s on {count(learnt, 'case')}.\n"
        f"{where}Use it:  {use} --prompt … --target …"
    )
