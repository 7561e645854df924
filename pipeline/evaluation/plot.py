"""Curves of a comparison as a picture: mean IoU against clicks. Needs matplotlib, which the `plot` extra installs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.errors import BadInputError
from schemas.evaluation import Comparison

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot_path(path: Path) -> None:
    """Refuse a plot that could not be written, before any work is done.

    Raises:
        BadInputError: Another suffix, no such folder, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES or not path.parent.is_dir():
        raise BadInputError(f"{path}: expected a file ending in {', '.join(SUFFIXES)} in a folder that exists.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInputError("Plots need matplotlib. Install it: pip install 'clickloop[plot]'.") from error


def plot_comparison(comparisons: Sequence[Comparison], path: Path) -> None:
    """Mean IoU after k clicks of each model, right clicks solid, misleading ones dashed."""
    curves = {f"{c.name} ({c.weights})": c.report.miou_at for c in comparisons}
    dashed = {f"{c.name}, misled": c.misled.miou_at for c in comparisons if c.misled is not None}
    plot_curves(curves, dashed, "clicks", "mean IoU", path)


def plot_curves(
    solid: Mapping[str, Mapping[str, float | None]],
    dashed: Mapping[str, Mapping[str, float | None]],
    x_label: str,
    y_label: str,
    path: Path,
) -> None:
    """Write curves as one picture.

    Args:
        solid: Name to points, x (a number as text) to y; points without y are left out.
        dashed: Likewise, drawn dashed.
        x_label: Of the axis.
        y_label: Of the axis.
        path: See `check_plot_path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for style, curves in (("-", solid), ("--", dashed)):
        for name, points in curves.items():
            known = [(float(x), y) for x, y in points.items() if y is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], style, marker=".", label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
