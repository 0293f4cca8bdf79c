"""``easyedit bench``: compare methods on a dataset, in runs that survive a crash."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import Command, Commands
from easyeditor.errors import did_you_mean
from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from easyeditor.bench.config import BenchmarkConfig
    from easyeditor.bench.table import Table
    from easyeditor.edits import Case
    from easyeditor.evaluate.presets import Preset
    from easyeditor.evaluate.query import Measures
    from easyeditor.hyperparams import HyperParams

EXAMPLES = r"""
Examples:

  easyedit bench --methods rome,ft --data worldfacts --limit 20 --out runs/first

  easyedit bench --methods memit --data counterfact.json --limit 200 \
    --protocol batch --batch-size 100 --out runs/memit

  easyedit bench --data worldfacts --protocol sequential --out runs/ft --ray \
    --entrant "FT-L=ft objective_optimization=prompt_last" \
    --entrant "FT-M=ft objective_optimization=target_new"

  easyedit bench report runs/first runs/ft

  easyedit bench --methods rome,ft --protocol-preset wild --distractors \
    --out runs/wild

Stopped at any moment, the same command goes on where it was; a finished run is
only reported again. Protocols: single (each edit alone), batch (--batch-size
edits at once, each batch from the unedited model), sequential (edits
accumulate, --batch-size at a time).
"""
JUDGE_EXAMPLES = r"""
Example:

  easyedit bench judge runs/first --judge-model qwen3-32b \
    --base-url http://127.0.0.1:8000/v1
"""
LOCAL, CLASSIC = "local", "classic"
PROTOCOLS = ("single", "batch", "sequential")
REPORT_EXAMPLES = """
Example:

  easyedit bench report runs/first runs/second --out comparison
"""


class _Bench(Commands):
    """``--ray`` may stand without an address, which typer's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse, with the local cluster for a missing address."""
        words = []
        for here, after in zip(args, [*args, "-"][1:], strict=True):
            words.append(here)
            if here == "--ray" and after.startswith("-"):
                words.append(LOCAL)
        return super().parse_args(ctx, words)


bench = typer.Typer(cls=_Bench, invoke_without_command=True, rich_markup_mode="rich")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(bench, name="bench", help="Compare methods on a dataset; resumable.")


@bench.callback(epilog=EXAMPLES)
def run(
    ctx: typer.Context,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(METHODS)}.")] = "",
    entrant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'LABEL=METHOD NAME=VALUE …'",
            help="A method with settings of its own, under a label of its own; repeatable.",
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="A file, or a name: easyedit data ls")] = "worldfacts",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many cases.")] = None,
    protocol: Annotated[str, typer.Option(help="single, batch or sequential.")] = "single",
    batch_size: Annotated[int, typer.Option(min=1, help="Cases per edit.")] = 1,
    protocol_preset: Annotated[
        str,
        typer.Option(
            help="classic: given answers, teacher forced; wild: also free answers to questions "
            "and in chat form, as a user would see them."
        ),
    ] = CLASSIC,
    distractors: Annotated[
        bool,
        typer.Option(
            "--distractors",
            help="Also every neighbour with the edited fact before it (CounterFact+: NS+, NKL).",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is sampled.")] = 0,
    answers: Annotated[
        int, typer.Option(min=0, help="Tokens of each free answer; 0: none are asked.")
    ] = 24,
    continuation_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of each long continuation; 0: none.")
    ] = 100,
    continuations: Annotated[
        int, typer.Option(min=1, help="Long continuations per case, at most.")
    ] = 3,
    heldout: Annotated[
        str, typer.Option(help="A text file for the perplexity; 'none': not measured.")
    ] = "",
    classifier: Annotated[
        str,
        typer.Option(
            metavar="NAME[=LABEL]",
            help="A text classifier, a folder or a hub name, that judges behaviour: which answers "
            "are safe (label 0, or LABEL), which show a trait. Without: declining is safe.",
        ),
    ] = "",
    downstream: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness, comma-separated.")
    ] = "",
    downstream_limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many items of each task.")
    ] = None,
    downstream_path: Annotated[
        Path | None, typer.Option(help="A folder with task definitions of your own.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Share the cases among Ray workers: a local cluster, or the one at ADDRESS.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray workers.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    set_: options.Settings = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Edit every case of a dataset with every method, and report the scores."""
    if ctx.invoked_subcommand is not None:
        if methods or entrant or out:
            raise typer.BadParameter(
                f"these options start a run; those of {ctx.invoked_subcommand} come after its name"
            )
        return
    if not methods and not entrant and out is None:
        raise typer.BadParameter(
            "Name what to compare and the run's folder: easyedit bench --methods METHOD,METHOD "
            "--out FOLDER (easyedit bench --help has examples, easyedit methods the methods)."
        )
    if out is None:
        raise typer.BadParameter("missing; name the run's folder", param_hint="--out")
    if protocol not in PROTOCOLS:
        raise typer.BadParameter(
            f"{protocol!r}: use 'single', 'batch' or 'sequential'."
            f"{did_you_mean(protocol, PROTOCOLS)}",
            param_hint="--protocol",
        )
    places.check_folder(out, empty=False)
    options.check_model(model)
    wanted = _entrants(methods, entrant or [], model, set_ or [], seed, device, dtype)
    from easyeditor.evaluate.presets import PRESETS, preset
    from easyeditor.evaluate.probes import with_distractors

    evaluation = preset(protocol_preset)
    cases = _cases(data, limit, wanted)
    if distractors:
        cases = [with_distractors(case) for case in cases]
    measures = _measures(answers, continuation_tokens, continuations, heldout, seed)
    measures = replace(measures, divergence=distractors, judge=options.judge_of(classifier))
    measures = evaluation.options(measures)

    from easyeditor.bench.config import BenchmarkConfig

    plan = BenchmarkConfig(
        methods=wanted,
        cases=cases,
        protocol=protocol,  # type: ignore[arg-type]
        batch_size=batch_size,
        measures=measures,
        seed=seed,
        data=Path(data).name,
        downstream=tuple(task.strip() for task in downstream.split(",") if task.strip()),
        downstream_limit=downstream_limit,
        downstream_path=str(downstream_path) if downstream_path else None,
        preset=PRESETS.canonical(protocol_preset),
    )
    _run(plan, evaluation, out, ray, workers, trust_remote_code)
    _report([out], None, as_json)


@bench.command(cls=Command, epilog=REPORT_EXAMPLES)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default the first run's report/.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Tables (Markdown, CSV, LaTeX, JSON) and plots of one or several runs."""
    _report(runs, out, as_json)


@bench.command(cls=Command, epilog=JUDGE_EXAMPLES)
def judge(
    run: Annotated[Path, typer.Argument(help="A run that asked for free answers.")],
    base_url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint, up to /v1.")],
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")],
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 8,
    as_json: options.Json = False,
) -> None:
    """Let a language model say which free answers state the new fact (OPENAI_API_KEY)."""
    from easyeditor.bench.judging import judge_run
    from easyeditor.evaluate.judge import Judge

    client = Judge(
        base_url, judge_model, concurrency=concurrency, cache=run / "judge_replies.jsonl"
    )
    scores = judge_run(run, client)
    if as_json:
        output.print_json(scores)
        return
    names = ("method", "answers to", "states the target", "n", "no verdict")
    rows = []
    for label, kinds in scores.items():
        for kind, row in kinds.items():
            share = "–" if row["judge_acc"] is None else f"{100 * row['judge_acc']:.1f} %"
            rows.append([label, kind, share, str(row["n"]), str(row["unparsed"])])
    output.show(f"Judged by {judge_model}", [output.Column(name) for name in names], rows)


def _entrants(
    methods: str,
    entrants: list[str],
    model: str,
    changes: list[str],
    seed: int,
    device: str | None,
    dtype: str | None,
) -> dict[str, HyperParams]:
    wanted = [
        (name.strip(), name.strip(), list[str]()) for name in methods.split(",") if name.strip()
    ]
    for text in entrants:
        try:
            head, *own_changes = shlex.split(text) or [""]
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {error}", param_hint="--entrant") from None
        label, equals, name = head.partition("=")
        if not equals or not label or not name:
            raise typer.BadParameter(
                f"{text!r} must read 'LABEL=METHOD NAME=VALUE …'", param_hint="--entrant"
            )
        wanted.append((label, name, own_changes))
    if not wanted:
        raise typer.BadParameter("name at least one", param_hint="--methods")
    result: dict[str, HyperParams] = {}
    for label, name, own_changes in wanted:
        method = METHODS.canonical(name)
        label = method if label == name else label
        if label in result:
            raise typer.BadParameter(f"{label!r} takes part twice; give it another label")
        settings = options.settings_of(method, model, None, [*changes, *own_changes])
        named = {change.partition("=")[0].strip() for change in (*changes, *own_changes)}
        variant = settings.variant(label)  # "FT-M=ft" means what FT-M stands for
        more = {name: value for name, value in variant.items() if name not in named}
        more |= {"device": device} if device is not None else {}
        if dtype is not None:
            more |= {"dtype": dtype, "fp16": False}
        if "seed" in type(settings).model_fields and "seed" not in named:
            more["seed"] = seed
        result[label] = settings.replace(**more)
    return result


def _cases(data: str, limit: int | None, wanted: dict[str, HyperParams]) -> list[Case]:
    """The cases; prompts are tried with the suffix that a method is trained with."""
    from easyeditor.data.open import checked_cases, open_dataset

    known = [one for one in wanted.values() if hasattr(one, "suffix_system_prompt")]
    suffixes = {one.suffix_system_prompt: one for one in known}
    if len(suffixes) > 1:
        raise typer.BadParameter(
            "suffix_system_prompt must be the same for all: their prompts are tried with one suffix"
        )
    with output.working(f"reading {data} …"):
        first = next(iter(suffixes.values()), None)
        return checked_cases(open_dataset(data, size=limit, config=first))


def _measures(
    answers: int, continuation_tokens: int, continuations: int, heldout: str, seed: int
) -> Measures:
    from easyeditor.data.heldout import heldout_text
    from easyeditor.evaluate.query import Measures

    text = "" if heldout == "none" else heldout_text(heldout or None)
    return Measures(answers, continuation_tokens, continuations, text, seed)


def _run(
    plan: BenchmarkConfig,
    evaluation: Preset,
    out: Path,
    ray: str | None,
    workers: int | None,
    trust: bool,
) -> None:
    from functools import partial

    from easyeditor.bench.runner import run as carry_out
    from easyeditor.editors.layer_choice import automatic
    from easyeditor.hyperparams import MODEL_FIELDS
    from easyeditor.lm.loading import load

    if ray is None and workers is not None:
        raise typer.BadParameter("is for --ray", param_hint="--workers")
    first, *others = plan.methods.values()
    for name in MODEL_FIELDS:
        if any(getattr(other, name) != getattr(first, name) for other in others):
            raise typer.BadParameter(f"{name} must be the same for all: they share one model")
    with output.loading(first.model_name):
        lm = load(first.model, trust_remote_code=trust)
    plan = replace(
        plan,
        methods={k: automatic(lm, v) for k, v in plan.methods.items()},
        cases=evaluation.cases(lm, plan.cases),
    )
    if ray is None:
        carry_out(lm, plan, out)
        return
    from easyeditor.bench.cluster import RayExecutor

    address = None if ray == LOCAL else ray
    with RayExecutor(
        partial(load, first.model, trust_remote_code=trust), plan, workers, address
    ) as executor:
        carry_out(lm, plan, out, executor)


def _report(runs: list[Path], out: Path | None, as_json: bool) -> None:
    places.check_runs(runs)  # before torch is imported
    from easyeditor.bench.report import report as write

    with output.working("writing the report …"):
        document = write(runs, out)
    if as_json:
        output.print_json(document.document())
        return
    if output.out.is_terminal:
        show_table(document.table)
    else:
        output.out.print_line(document.markdown())
    output.out.print_line(f"Tables and plots: {document.out}")
    if document.without:
        output.out.print_line(document.without)


def show_table(table: Table) -> None:
    """The report's tables, each as wide as the terminal."""
    from easyeditor.bench.writers import plain

    output.out.print(table.caption)
    for group, labels, head, body in plain(table):
        output.show_wide(group, head, body, labels)
