"""``trace``: where a fact passes through a model, as maps in the terminal and as pictures."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.output import Column
from easyeditor.cli.patches import load_patches, model_of
from easyeditor.errors import EditError
from easyeditor.files import written_whole
from easyeditor.subjects import locate_subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from easyeditor.interpret.causal_trace import CausalTrace
    from easyeditor.interpret.logit_lens import LogitLens
    from easyeditor.lm.model import LM

EXAMPLES = r"""
Examples:

  easyedit trace "The Eiffel Tower is located in the city of" \
    --subject "The Eiffel Tower"

  easyedit trace "The Eiffel Tower is located in the city of" \
    --subject "The Eiffel Tower" --kind mlp --kind attention --out trace.png

  easyedit trace "The Eiffel Tower is located in the city of" --kind lens \
    --answer Paris --answer Rome --patch eiffel.safetensors --out lens.png
"""
PICTURES = (".png", ".svg", ".pdf")


class Kind(str, Enum):
    """What is looked at."""

    state = "state"
    mlp = "mlp"
    attention = "attention"
    lens = "lens"


class Severed(str, Enum):
    """Modules that are held at their corrupted outputs."""

    mlp = "mlp"
    attention = "attention"


class Metric(str, Enum):
    """What is read of the answer."""

    probability = "probability"
    logit_difference = "logit_difference"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, trace, epilog=EXAMPLES)


def trace(
    prompt: Annotated[str, typer.Argument(help="A text that ends where the answer begins.")],
    subject: Annotated[
        str | None, typer.Option(help="What is corrupted; not needed for the lens.")
    ] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(
            help="What is looked for, by its first token; repeatable for the lens. By default what "
            "the model answers."
        ),
    ] = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            help="Restore hidden states, or windows of MLPs or attentions; or the logit lens. "
            "Repeatable; state by default."
        ),
    ] = None,
    patch: Annotated[
        list[Path] | None, typer.Option(help="Trace with this patch applied; repeatable.")
    ] = None,
    model: options.PatchModel = None,
    samples: Annotated[int, typer.Option(min=1, help="Corrupted copies.")] = 10,
    window: Annotated[int, typer.Option(min=1, help="Modules restored together.")] = 10,
    swap_with: Annotated[
        str | None,
        typer.Option(help="Another subject of as many tokens, in place of noise."),
    ] = None,
    severed: Annotated[
        Severed | None, typer.Option(help="Hold these modules at their corrupted outputs.")
    ] = None,
    metric: Annotated[Metric, typer.Option(help="What is read.")] = Metric.probability,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A picture to write (.png, .svg, .pdf); one for each kind."
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Show which states bring an answer back after the subject was corrupted."""
    if not prompt.strip():
        raise EditError("The prompt is empty; give a text that ends where the answer begins.")
    kinds = list(dict.fromkeys(kind or [Kind.state]))
    traced = [one.value for one in kinds if one is not Kind.lens]
    if traced and subject is None:
        raise typer.BadParameter("name what is corrupted: --subject", param_hint="--subject")
    if traced and len(answer or []) > 1:
        raise typer.BadParameter("a trace looks for one answer", param_hint="--answer")
    if traced and subject is not None:
        locate_subject(prompt, subject)  # before the model is loaded
    pictures = _pictures(out, kinds)
    loaded = load_patches(patch or [])
    model = model_of(model, loaded)
    lm = output.load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

    from easyeditor.interpret.causal_trace import TraceOptions, causal_trace

    chosen = TraceOptions(
        samples=samples,
        window=window,
        swap_with=swap_with,
        metric=metric.value,
        severed=None if severed is None else severed.value,
    )
    lenses = _lenses(lm, prompt, answer, loaded) if Kind.lens in kinds else []
    if not lenses:
        for one in loaded:
            one.apply(lm.model)
    traces: list[CausalTrace] = []
    if traced:
        assert subject is not None
        first = answer[0] if answer else None
        with output.working(f"tracing {', '.join(traced)} …"):
            traces = causal_trace(lm, prompt, subject, first, kinds=traced, options=chosen)
    _draw(pictures, traces, lenses, lm.name)
    if as_json:
        document: dict[str, Any] = {
            "model": model,
            "traces": [result.as_dict() for result in traces],
        }
        if lenses:
            document["lens"] = dict(
                zip(("before", "after"), (lens.as_dict() for lens in lenses), strict=False)
            )
        output.print_json({**document, "pictures": {k: str(v) for k, v in pictures.items()}})
        return
    for result in traces:
        _show_trace(result)
    for i, lens in enumerate(lenses):
        _show_lens(lens, ("before", "after")[i] if len(lenses) > 1 else "")
    for path in pictures.values():
        output.out.print_line(f"Picture: {path}")


def _pictures(out: Path | None, kinds: list[Kind]) -> dict[str, Path]:
    """Where the picture of each kind goes."""
    if out is None:
        return {}
    if out.suffix.lower() not in PICTURES:
        raise typer.BadParameter(
            f"{str(out)!r} must end in {', '.join(PICTURES)}", param_hint="--out"
        )
    single = len(kinds) == 1
    paths = {
        one.value: out if single else out.with_name(f"{out.stem}-{one.value}{out.suffix}")
        for one in kinds
    }
    for path in paths.values():
        places.check_file(path)
    return paths


def _lenses(lm: LM, prompt: str, answers: list[str] | None, patches: list[Any]) -> list[LogitLens]:
    """Of the model, and with the patches applied; they stay applied."""
    from easyeditor.interpret.logit_lens import logit_lens
    from easyeditor.lm.inference import generate

    named = answers or generate(lm, [prompt], 1)
    with output.working("reading every layer …", long=False):
        lenses = [logit_lens(lm, prompt, named)]
        for patch in patches:
            patch.apply(lm.model)
        return [*lenses, logit_lens(lm, prompt, named)] if patches else lenses


def _draw(
    pictures: dict[str, Path], traces: list[CausalTrace], lenses: list[LogitLens], name: str
) -> None:
    if not pictures:
        return
    from easyeditor.interpret.pictures import lens_figure, trace_figure

    figures: dict[str, Figure] = {trace.kind: trace_figure(trace, name) for trace in traces}
    if lenses:
        figures["lens"] = lens_figure(*lenses)
    for kind, figure in figures.items():
        path = pictures[kind]
        with written_whole(path) as part:
            figure.savefig(part, format=path.suffix[1:].lower(), dpi=200)


def _bounded(maps: list[str]) -> list[str]:
    """Each row of a map with its ends marked: its lightest cells are spaces."""
    return [f"|{row}|" for row in maps]


def _show_trace(trace: CausalTrace) -> None:
    from easyeditor.interpret.pictures import text_map

    chosen = trace.options
    name = chosen.metric.replace("_", " ")
    high = float(trace.scores.max())
    first, last = trace.subject
    columns = [
        Column("token", text=True),
        Column("layers, 0 on the left"),
        Column("best", right=True),
    ]
    columns += [Column("layer", right=True)]
    rows = []
    maps = _bounded(text_map(trace.scores, trace.corrupted, high))
    for i, (token, shades) in enumerate(zip(trace.tokens, maps, strict=True)):
        star = "*" if first <= i <= last else ""
        best = trace.scores[i].max()
        rows.append(
            [token.strip() + star, shades, f"{float(best):.3f}", str(int(trace.scores[i].argmax()))]
        )
    restored = "hidden states" if trace.kind == "state" else f"{chosen.window} {trace.kind} layers"
    title = f"{name} of {trace.answer.strip()!r} after restoring {restored}"
    output.show(title + (f", {chosen.severed} severed" if chosen.severed else ""), columns, rows)
    output.out.print_line(
        f"{name}: {trace.clean:.3f} clean, {trace.corrupted:.3f} corrupted; * the subject."
    )
    if not trace.is_top:
        output.note(f"{trace.answer.strip()!r} is not what the model answers here.")


def _show_lens(lens: LogitLens, when: str) -> None:
    from easyeditor.interpret.pictures import text_map

    for answer, numbers, ranks in zip(lens.answers, lens.probabilities, lens.ranks, strict=True):
        columns = [Column("token", text=True), Column("layers, 0 on the left")]
        columns += [Column("p at the end", right=True), Column("rank at the end", right=True)]
        rows = [
            [token.strip(), shades, f"{float(p[-1]):.3f}", str(int(rank[-1]))]
            for token, shades, p, rank in zip(
                lens.tokens, _bounded(text_map(numbers, 0, 1)), numbers, ranks, strict=True
            )
        ]
        output.show(f"p({answer.strip()}) by layer {when}".strip(), columns, rows)
