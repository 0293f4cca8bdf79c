"""The tables and pictures of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyeditor.bench.drawing import png, svg
from easyeditor.bench.image_page import image_page
from easyeditor.bench.plots import figures
from easyeditor.bench.results import read_runs
from easyeditor.bench.table import Table, table
from easyeditor.bench.writers import as_csv, as_json, document, latex, markdown, plain
from easyeditor.display import data_frame, escaped, table_html
from easyeditor.errors import BenchError, MissingExtraError
from easyeditor.files import written_whole

PICTURES = ("scores", "probability", "time", "memory", "retention")


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """The files of a report.

    Attributes:
        out: the folder.
        files: the files, tables first.
        table: what the tables show.
        without: why there are no pictures; empty if there are.
    """

    out: Path
    files: tuple[Path, ...]
    table: Table
    without: str = ""

    def __repr__(self) -> str:
        return f"<Report of {len(self.table.rows)} rows in {str(self.out)!r}>"

    def _repr_html_(self) -> str:
        tables = [table_html(group, head, rows) for group, _labels, head, rows in plain(self.table)]
        return "".join([f"<p>{escaped(self.table.caption)}</p>", *tables])

    def to_frame(self) -> Any:
        """One row per method as a pandas ``DataFrame``: every number as measured, unscaled.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(
            [
                {
                    "run": row.run,
                    "method": row.method,
                    "scored": row.scored,
                    "cases": row.cases,
                    **{key: estimate.value for key, estimate in row.numbers.items()},
                }
                for row in self.table.rows
            ]
        )

    def markdown(self) -> str:
        """``table.md``."""
        return markdown(self.table)

    def document(self) -> dict[str, Any]:
        """``table.json``, as an object."""
        return document(self.table)


def report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    measured: bool = True,
    pictures: bool = True,
) -> Report:
    """Write ``table.md``, ``.csv``, ``.tex``, ``.json`` and pictures as PNG and SVG.

    Of runs with images also ``images.html``, a page with thumbnails and what was answered.
    The runs may still be in progress: complete ranges count. Without matplotlib only the tables are
    written, and :attr:`Report.without` says so. Pictures of an earlier report that do not
    belong to this one are deleted.

    Args:
        folders: run folders.
        out: where to; by default ``report`` in the first folder.
        measured: with seconds and memory. Without, tables of equal runs are equal to the bit.
        pictures: False writes the tables only.

    Raises:
        BenchError: see :func:`~easyeditor.bench.results.read_runs`, or ``out`` cannot be written.
    """
    given = [folders] if isinstance(folders, (str, Path)) else list(folders)
    runs = read_runs(given)
    rows = table(runs, measured=measured)
    target = Path(out) if out is not None else Path(given[0]) / "report"
    contents = {
        "table.md": markdown(rows).encode(),
        "table.csv": as_csv(rows).encode(),
        "table.tex": latex(rows).encode(),
        "table.json": as_json(rows).encode(),
    }
    page = image_page(runs)
    if page is not None:
        contents["images.html"] = page.encode()
    without = "" if pictures else "No pictures were asked for."
    if pictures:
        try:
            for name, figure in figures(runs, rows).items():
                contents |= {f"{name}.png": png(figure), f"{name}.svg": svg(figure)}
        except MissingExtraError as error:
            without = str(error)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with written_whole(target / name) as part:
                part.write_bytes(content)
        plots = {f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg")}
        for stale in plots | {"images.html"}:
            if stale not in contents:
                (target / stale).unlink(missing_ok=True)
    except OSError as error:
        raise BenchError(f"The report cannot be written to {target}: {error}.") from None
    return Report(target, tuple(target / name for name in contents), rows, without)
