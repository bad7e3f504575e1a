"""`report.html`: one self-contained file about one run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hagane.console.folder import read_run
from hagane.console.page import context_of
from hagane.terms import StoreError
from hagane.terms.files import write_whole

STYLES = ("uplot.min.css", "report.css")
SCRIPTS = (
    "uplot.min.js",
    "paint_table.js",
    "paint_arm.js",
    "paint_road.js",
    "paint_mill.js",
    "player.js",
    "curves.js",
    "digests.js",
    "page.js",
)


def make_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder, whole or not at all.

    Args:
        run: a folder like runs/<id>; parts may be missing, the page then says so.
        out: where to write; run/report.html when None.

    Returns:
        The path written.

    Raises:
        ConfigError: there is no such run.
        StoreError: the page cannot be written.
    """
    html = render(run)
    path = out if out is not None else run / "report.html"
    write_page(path, html.encode("utf-8", errors="replace"))
    return path


def render(run: Path) -> str:
    """The page as text. Everything from the run is escaped; nothing refers to a network."""
    return render_page("report.html.j2", STYLES, SCRIPTS, context_of(read_run(run)))


def render_page(template: str, styles: tuple[str, ...], scripts: tuple[str, ...], context: Mapping[str, Any]) -> str:
    """A page of ours as text, with its styles and scripts inside; all of the context is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hagane.console", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template)
    return page.render(**context, styles=_together(styles), scripts=_together(scripts))


def _together(names: tuple[str, ...]) -> Markup:
    """Our own files, as they are: they are trusted, and a test sees that none closes its element."""
    folder = files("hagane.console") / "assets"
    licence = (folder / "uplot.LICENSE.txt").read_text("utf-8").strip()
    texts = []
    for name in names:
        text = (folder / name).read_text("utf-8")
        if name == "uplot.min.js":
            text = f"/*! uPlot\n{licence}\n*/\n" + text[text.index("*/") + 2 :].lstrip()
        texts.append(text)
    return Markup("\n".join(texts))


def write_page(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: the old file or the new one, never half.

    Raises:
        StoreError: the folder is missing, the disk is full, or it may not be written.
    """
    try:
        write_whole(path, [data])
    except OSError as e:
        raise StoreError(
            f"cannot write the page: {e.strerror}", where=str(path), next_step="free space, or give another --out"
        ) from None
