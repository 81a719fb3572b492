"""Figures of what `bench` found, as PNG. They need matplotlib, the extra `plot`.

Every figure is a pure function of the results: the same results give the same picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sh2gen.base.errors import printable
from sh2gen.base.files import write_all
from sh2gen.bench.baselines import BASELINES
from sh2gen.bench.results import Outcome, Results, Size
from sh2gen.bench.worker import OWN
from sh2gen.targets.target import Target, target

_TITLES = {"forward": "forward", "backward": "backward", "both": "forward and backward"}
_DPI = 150
_LABEL, _TICK = 10, 9  # points
_INK, _MUTED, _GRID = "#222222", "#777777", "#dddddd"
_OWN_COLOUR = "#d1495b"
# Of the others, in the order of the table, each with a marker of its own.
_COLOURS = (
    *("#00798c", "#edae49", "#2b4c9b", "#8ab6e6", "#4a7c59", "#9bc53d", "#b5651d"),
    *("#5fb49c", "#8d6a9f", "#e377c2", "#6c757d", "#111111", "#a3a500"),
)
_MARKERS = "sD^v<>P*Xphd8"
_BOUND: dict[str, Any] = {"color": _INK, "linestyle": ":", "linewidth": 1.6}
# Of sh2gen's own, where nothing else is drawn.
_KERNELS = (("forward", "o", _OWN_COLOUR), ("backward", "s", _COLOURS[0]))
# What a baseline is, where its name does not say it.
_MEANINGS = {
    "eager": "PyTorch, conv1d",
    "compile": "torch.compile",
    "fft": "PyTorch, float32 FFTs",
    "fft_given": "float32 FFTs, taps given",
    "causal_conv1d_last": "channels last",
    "mamba_ssm": "selective scan",
}


def figures(results: Results, folder: Path) -> tuple[Path, ...]:
    """Write every figure that the results have data for, and give their paths.

    - time.png: time against length, with the elementwise bound.
    - share.png: share of that bound against length.
    - roofline.png: FLOP per byte against FLOP per second of sh2gen's kernels, if it has some.
    - predicted.png: how far the cost model is off, against length.

    Raises:
        Sh2genError: C005 if one cannot be written; then none is.
    """
    drawn = {
        "time": _times(results),
        "share": _shares(results),
        "predicted": _predicted(results),
    }
    if results.efforts:
        drawn["roofline"] = _roofline(results, target(results.target))
    files = {folder / f"{results.op}_{name}.png": _png(figure) for name, figure in drawn.items()}
    write_all(files)
    return tuple(files)


def _png(figure: Any) -> bytes:
    """With a palette, which is enough for lines and a third of the bytes."""
    from PIL import Image

    figure.canvas.draw()
    size, pixels = figure.canvas.get_width_height(), figure.canvas.buffer_rgba()
    image = Image.frombuffer("RGBA", size, pixels, "raw", "RGBA", 0, 1).convert("RGB")
    found = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
    return found.getvalue()


# ---- parts of figures ---------------------------------------------------------------------------


def _panels(
    count: int, title: str, results: Results, *, width: float, height: float
) -> tuple[Any, Any]:
    """A figure with panels side by side, which share their vertical axis, without the global state
    of pyplot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    where = [f"D = {results.channels}", results.dtype, results.gpu]
    batches = {size.batch for size in results.sizes}
    if len(batches) == 1:
        where.insert(0, f"B = {batches.pop()}")
    text = _plain(f"{results.op}: {title}\n{', '.join(where)}")
    figure.suptitle(text, fontsize=11, color=_INK)
    for ax in axes:
        ax.grid(True, which="major", color=_GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=_TICK, colors=_INK, which="both")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def _style(name: str, part: bool) -> dict[str, Any]:
    """Colour, marker and line of a baseline, the same in every figure."""
    line = "--" if part else "-"
    if name == OWN:
        style = {"color": _OWN_COLOUR, "marker": "o", "linewidth": 2.4, "zorder": 5}
    else:
        place = list(BASELINES).index(name) if name in BASELINES else len(BASELINES)
        style = {
            "color": _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
            "linewidth": 1.4,
            "zorder": 3,
        }
    return style | {"linestyle": line, "markersize": 5.5}


def _steps(results: Results) -> tuple[str, dict[tuple[int, int], int]]:
    """The label of the axis of sizes, and where each size lies on it."""
    if len({size.batch for size in results.sizes}) == 1:
        return "sequence length L, steps", {s.size: s.length for s in results.sizes}
    return "B L, steps of all sequences", {s.size: s.batch * s.length for s in results.sizes}


def _size_axis(ax: Any, label: str, places: Mapping[tuple[int, int], int]) -> None:
    """Logarithmic, with a tick at each size that was measured."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(places.values()))
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [_steps_text(n) for n in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)
    short = any(_steps_text(n).endswith("K") for n in ticks)
    ax.set_xlabel(label + " (1K = 1024)" * short, fontsize=_LABEL, color=_INK)


def _steps_text(n: int) -> str:
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


def _log_axis(axis: Any, low: float, high: float, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis in plain numbers: decades, or 1, 2, 5 if these are few."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**e for e in exponents]
    inside = [x for x in decades if low <= x <= high]
    between = [k * x for x in decades for k in range(2, 10) if low <= k * x <= high]
    if len(inside) < 3:
        inside = [k * x for x in decades for k in (1, 2, 5) if low <= k * x <= high]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_major_formatter(lambda x, _: text(x))
    axis.set_minor_locator(FixedLocator(between) if len(decades) < 8 else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _finite(numbers: Iterable[float]) -> list[float]:
    """Those that axes can hold; of curves the others are gaps."""
    return [x for x in numbers if math.isfinite(x)]


def _time_text(us: float) -> str:
    for unit, name in ((1e6, "s"), (1e3, "ms")):
        if us >= unit:
            return f"{us / unit:g} {name}"
    return f"{us:g} \u00b5s"


def _by_baseline(results: Results, direction: str) -> dict[str, list[Outcome]]:
    """Outcomes with a time in one direction, sh2gen first, each sorted by size."""
    found: dict[str, list[Outcome]] = {}
    for outcome in results.outcomes:
        if direction in outcome.times:
            found.setdefault(outcome.baseline, []).append(outcome)
    return {
        name: sorted(several, key=lambda o: (o.batch or 0) * (o.length or 0))
        for name, several in found.items()
    }


def _legend(figure: Any, axes: Iterable[Any]) -> None:
    """One for all panels, below them, in as few rows as fit."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=math.ceil(len(handles) / rows),
            frameon=False,
            fontsize=_TICK,
            borderaxespad=0.2,
        )
        if legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


# ---- figures ------------------------------------------------------------------------------------


def _directions(results: Results) -> list[str]:
    """Those with a time of anything; forward if there is none at all."""
    found = [d for d in _TITLES if any(d in o.times for o in results.outcomes)]
    return found or ["forward"]


def _curves(
    results: Results, title: str, label: str, value: Callable[[Outcome, str], float]
) -> tuple[Any, dict[str, Any], dict[tuple[int, int], int]]:
    """A figure with values of every baseline against length, its panels by direction, and where
    each size lies.
    """
    directions = _directions(results)
    width = 9.9 if len(directions) > 1 else 5.2
    figure, axes = _panels(len(directions), title, results, width=width, height=4.3)
    steps, places = _steps(results)
    for ax, direction in zip(axes, directions, strict=True):
        for name, several in _by_baseline(results, direction).items():
            x, y = _places(several, places), [value(o, direction) for o in several]
            part = any(o.without for o in several)
            ax.plot(x, y, label=_plain(_entry(name, part)), **_style(name, part))
        _size_axis(ax, steps, places)
        ax.set_title(_TITLES[direction], fontsize=_LABEL, color=_INK)
    axes[0].set_ylabel(label, fontsize=_LABEL, color=_INK)
    return figure, dict(zip(directions, axes, strict=True)), places


def _plain(text: str) -> str:
    """A text of results as it is drawn: no formula, and nothing that no font has a sign for."""
    return printable(text).replace("$", r"\$")


def _entry(name: str, part: bool) -> str:
    """Of the legend."""
    words = [_MEANINGS[name]] if name in _MEANINGS else []
    words += ["a part"] if part else []
    return f"{name} ({'; '.join(words)})" if words else name


def _places(sizes: Iterable[Outcome | Size], places: Mapping[Any, int]) -> list[int]:
    return [places[one.size] for one in sizes]


def _times(results: Results) -> Any:
    """Time against length, both logarithmic."""
    figure, panels, places = _curves(
        results, "time of a call", "median time", lambda o, d: o.times[d].median
    )
    sizes = sorted(results.sizes, key=lambda s: places[s.size])
    values = [t.median for o in results.outcomes for t in o.times.values()]
    values += [s.bounds[d] for s in sizes for d in panels]
    shown = _finite(values) or [1.0]
    for direction, ax in panels.items():
        y = [s.bounds[direction] for s in sizes]
        ax.plot(
            _places(sizes, places), y, label="elementwise bound", marker="_", zorder=4, **_BOUND
        )
    for ax in panels.values():
        ax.set_yscale("log")
        ax.set_ylim(min(shown) / 1.5, max(shown) * 1.5)
        _log_axis(ax.yaxis, min(shown) / 1.5, max(shown) * 1.5, _time_text)
    _legend(figure, panels.values())
    return figure


def _shares(results: Results) -> Any:
    """Share of the bound of what each computes against length; sh2gen's in figures too."""
    figure, panels, places = _curves(
        results, "share of the elementwise bound", "bound / time", lambda o, d: o.shares[d]
    )
    shares = _finite(share for o in results.outcomes for share in o.shares.values())
    for direction, ax in panels.items():
        ax.axhline(1.0, label="elementwise bound", **_BOUND)
        ax.set_ylim(0, 1.08 * max([1.0, *shares]))
        for outcome in _by_baseline(results, direction).get(OWN, ()):
            share = outcome.shares[direction]
            if not math.isfinite(share):
                continue
            ax.annotate(
                f"{share:.2f}",
                (*_places([outcome], places), share),
                textcoords="offset points",
                xytext=(0, -14),
                ha="center",
                fontsize=_TICK,
                color=_OWN_COLOUR,
            )
    _legend(figure, panels.values())
    return figure


def _bandwidth(results: Results) -> float | None:
    """Bytes per second, the most that an elementwise kernel of this run reached."""
    reached = (
        moved * results.channels * size.batch * size.length / (size.bounds[direction] * 1e-6)
        for size in results.sizes
        for direction, moved in results.bound_bytes.items()
    )
    return max(_finite(reached), default=None)


def _roofline(results: Results, gpu: Target) -> Any:
    """FLOP per second that sh2gen's kernels reach against FLOP per byte, under the roofs.

    The one of memory is of this run, in which a constant of the target may have been beaten.
    """
    title = f"sh2gen's kernels under the roofs of {gpu.name}"
    figure, (ax,) = _panels(1, title, results, width=6.4, height=5.0)
    _, places = _steps(results)
    points: list[tuple[float, float, str, Size]] = []
    for direction, effort in results.efforts.items():
        for size in results.sizes:
            own = results.own(size.size, direction)
            if own is not None:
                flops = (effort.flops + effort.product_flops) * results.channels
                rate = flops * size.batch * size.length / (own * 1e-6)
                if math.isfinite(effort.intensity) and rate > 0:
                    points.append((effort.intensity, rate / 1e12, direction, size))
    xs = [x for x, *_ in points] or [1.0]
    tensor = results.dtype != "float32" and any(
        e.product_flops > 0 for e in results.efforts.values()
    )
    roofs = [("float32 arithmetic", gpu.fp32 / 1e12, "-.")]
    if tensor:
        roofs.append(("large matrix products", gpu.matmul / 1e12, "-"))
    peak = max(rate for _, rate, _ in roofs)
    memory = [("memory, datasheet: {:.2f} TB/s", gpu.dram_bandwidth / 1e12, "--")]
    if (reached := _bandwidth(results)) is not None:
        memory.insert(0, ("memory, elementwise kernels: {:.2f} TB/s", reached / 1e12, "-"))
    left, right = min(xs) / 3, max(*xs, peak / memory[0][1]) * 2
    for label, rate, line in memory:
        ax.plot(
            [left, peak / rate],
            [left * rate, peak],
            color=_INK if line == "-" else _MUTED,
            linestyle=line,
            linewidth=1.6 if line == "-" else 1.0,
            label=label.format(rate),
        )
    for name, rate, line in roofs:
        ax.plot(
            [max(left, rate / memory[-1][1]), right],
            [rate, rate],
            color=_INK if line == "-" else _MUTED,
            linestyle=line,
            linewidth=1.6 if line == "-" else 1.2,
            label=f"{name}: {rate:.0f} TFLOP/s",
        )
    ordered = sorted({places[s.size] for *_, s in points})
    for direction, marker, colour in _KERNELS:
        mine = [p for p in points if p[2] == direction]
        if not mine:
            continue
        ax.scatter(
            [x for x, *_ in mine],
            [y for _, y, *_ in mine],
            s=40,
            marker=marker,
            facecolor="none",
            edgecolor=colour,
            linewidth=1.6,
            zorder=5,
            label=direction,
        )
        for x, y, _, size in mine:
            if places[size.size] in (ordered[0], ordered[-1]):
                _beside(ax, _steps_text(places[size.size]), (x, y), colour)
    lowest = min([y for _, y, *_ in points] + [left * memory[0][1]]) / 1.5
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left, right)
    ax.set_ylim(lowest, peak * 1.6)
    _log_axis(ax.xaxis, left, right, "{:g}".format)
    _log_axis(ax.yaxis, lowest, peak * 1.6, "{:g}".format)
    ax.set_xlabel("arithmetic intensity, FLOP / byte", fontsize=_LABEL, color=_INK)
    ax.set_ylabel("TFLOP / s", fontsize=_LABEL, color=_INK)
    _legend(figure, [ax])
    return figure


def _beside(ax: Any, text: str, place: tuple[float, float], colour: str) -> None:
    """A word to the right of a marker."""
    ax.annotate(
        text,
        place,
        textcoords="offset points",
        xytext=(8, 0),
        va="center",
        fontsize=_TICK,
        color=colour,
    )


def _predicted(results: Results) -> Any:
    """Predicted over measured time of sh2gen against length."""
    title = f"time predicted for {results.target} over measured time"
    figure, (ax,) = _panels(1, title, results, width=5.2, height=4.3)
    steps, places = _steps(results)
    off = 1.5
    values: list[float] = [1 / off, off]
    ax.axhspan(1 / off, off, color=_GRID, alpha=0.5, linewidth=0, label=f"within {off} times")
    ax.axhline(1.0, color=_INK, linewidth=1.4)
    for direction, marker, colour in _KERNELS:
        found = sorted(
            (places[size.size], size.predicted[direction] / own)
            for size in results.sizes
            if (own := results.own(size.size, direction)) is not None
            and math.isfinite(size.predicted.get(direction, math.nan))
        )
        if found:
            values += [ratio for _, ratio in found]
            ax.plot(
                [x for x, _ in found],
                [ratio for _, ratio in found],
                marker=marker,
                markersize=6,
                linewidth=1.6,
                color=colour,
                label=direction,
                zorder=4,
            )
    low, high = min(values) / 1.25, max(values) * 1.25
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    _ratio_axis(ax.yaxis, low, high)
    _size_axis(ax, steps, places)
    ax.set_ylabel("predicted / measured", fontsize=_LABEL, color=_INK)
    _legend(figure, [ax])
    return figure


def _ratio_axis(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis of ratios around one."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks: Sequence[float] = (0.1, 0.2, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)
    axis.set_major_locator(FixedLocator([x for x in ticks if low <= x <= high]))
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_locator(NullLocator())
