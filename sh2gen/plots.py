"""Figures of what `bench` found, as PNG (layer 7). They need matplotlib, the extra `plot`.

Every figure is a pure function of the results: the same results give the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sh2gen.bench import Outcome, Results, Size
from sh2gen.bench_worker import OWN
from sh2gen.contenders import CONTENDERS
from sh2gen.target import Target, target

_TITLES = {"forward": "Forward", "backward": "Backward", "both": "Forward and backward"}
_DPI = 150
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


def figures(results: Results, folder: Path) -> tuple[Path, ...]:
    """Write every figure that the results have data for, and give their paths.

    - time.png: microseconds against length, with the elementwise bound.
    - share.png: share of that bound against length.
    - roofline.png: FLOP per byte against FLOP per second of sh2gen's kernels, if it has some.
    - predicted.png: what the cost model says against what was measured.
    """
    drawn = {
        "time": _times(results),
        "share": _shares(results),
        "predicted": _predicted(results),
    }
    if results.efforts:
        drawn["roofline"] = _roofline(results, target(results.target))
    paths = []
    for name, figure in drawn.items():
        path = folder / f"{results.op}_{name}.png"
        figure.savefig(path, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        paths.append(path)
    return tuple(paths)


# ---- parts of figures ---------------------------------------------------------------------------


def _panels(count: int, title: str, results: Results, *, width: float = 5.2) -> tuple[Any, Any]:
    """A figure with panels side by side, without the global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    where = f"D = {results.channels}, {results.dtype}, {results.gpu}"
    figure.suptitle(f"{title}\n{where}", fontsize=11, color=_INK)
    for ax in axes:
        ax.grid(True, which="major", color=_GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9, colors=_INK, which="both")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def _style(name: str, part: bool) -> dict[str, Any]:
    """Colour, marker and line of a contender, the same in every figure."""
    line = "--" if part else "-"
    if name == OWN:
        style = {"color": _OWN_COLOUR, "marker": "o", "linewidth": 2.4, "zorder": 5}
    else:
        place = list(CONTENDERS).index(name) if name in CONTENDERS else len(CONTENDERS)
        style = {
            "color": _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
            "linewidth": 1.4,
            "zorder": 3,
        }
    return style | {"linestyle": line, "markersize": 5.5}


def _steps(results: Results) -> tuple[str, dict[tuple[int, int], int]]:
    """The label of the axis of sizes, and where each size lies on it."""
    batches = {size.batch for size in results.sizes}
    if len(batches) == 1:
        return f"L, steps of a sequence (B = {batches.pop()})", {
            s.size: s.length for s in results.sizes
        }
    return "B L, steps of all sequences", {s.size: s.batch * s.length for s in results.sizes}


def _size_axis(ax: Any, label: str, places: Mapping[tuple[int, int], int]) -> None:
    """Logarithmic, with a tick at each size that was measured."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(places.values()))
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [_steps_text(n) for n in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    ax.set_xlabel(label, fontsize=10, color=_INK)


def _steps_text(n: int) -> str:
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


def _by_contender(results: Results, direction: str) -> dict[str, list[Outcome]]:
    """Outcomes with a time in one direction, sh2gen first, each sorted by size."""
    found: dict[str, list[Outcome]] = {}
    for outcome in results.outcomes:
        if direction in outcome.times:
            found.setdefault(outcome.contender, []).append(outcome)
    return {
        name: sorted(several, key=lambda o: (o.batch or 0) * (o.length or 0))
        for name, several in found.items()
    }


def _legend(figure: Any, axes: Iterable[Any]) -> None:
    """One for all panels, outside of them."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=9
    )


# ---- figures ------------------------------------------------------------------------------------


def _directions(results: Results) -> list[str]:
    """Those with a time of anything; forward if there is none at all."""
    found = [d for d in _TITLES if any(d in o.times for o in results.outcomes)]
    return found or ["forward"]


def _curves(
    results: Results, title: str, label: str, value: Callable[[Outcome, str], float]
) -> tuple[Any, dict[str, Any], dict[tuple[int, int], int]]:
    """A figure with values of every contender against length, its panels by direction, and where
    each size lies.
    """
    directions = _directions(results)
    figure, axes = _panels(len(directions), f"{results.op}: {title}", results, width=4.4)
    steps, places = _steps(results)
    for ax, direction in zip(axes, directions, strict=True):
        for name, several in _by_contender(results, direction).items():
            x, y = _places(several, places), [value(o, direction) for o in several]
            part = any(o.without for o in several)
            ax.plot(x, y, label=f"{name} (part)" if part else name, **_style(name, part))
        _size_axis(ax, steps, places)
        ax.set_title(_TITLES[direction], fontsize=10, color=_INK)
    axes[0].set_ylabel(label, fontsize=10, color=_INK)
    return figure, dict(zip(directions, axes, strict=True)), places


def _places(sizes: Iterable[Outcome | Size], places: Mapping[Any, int]) -> list[int]:
    return [places[one.size] for one in sizes]


def _times(results: Results) -> Any:
    """Microseconds against length, both logarithmic."""
    figure, panels, places = _curves(
        results, "time of a call", "microseconds, median", lambda o, d: o.times[d].median
    )
    sizes = sorted(results.sizes, key=lambda s: places[s.size])
    for direction, ax in panels.items():
        for name, several in _by_contender(results, direction).items():
            x, timings = _places(several, places), [o.times[direction] for o in several]
            low, high = [t.low for t in timings], [t.high for t in timings]
            colour = _style(name, False)["color"]
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        y = [s.bounds[direction] for s in sizes]
        ax.plot(_places(sizes, places), y, label="elementwise bound", zorder=4, **_BOUND)
        ax.set_yscale("log")
    _legend(figure, panels.values())
    return figure


def _shares(results: Results) -> Any:
    """Share of the bound of what each computes against length."""
    figure, panels, _ = _curves(
        results, "share of the elementwise bound", "bound / time", lambda o, d: o.shares[d]
    )
    for direction, ax in panels.items():
        ax.axhline(1.0, label="elementwise bound", **_BOUND)
        shares = [o.shares[direction] for o in results.outcomes if direction in o.shares]
        ax.set_ylim(0, 1.05 * max([1.0, *shares]))
    _legend(figure, panels.values())
    return figure


def _roofline(results: Results, gpu: Target) -> Any:
    """FLOP per second that sh2gen's kernels reach against FLOP per byte, under the roofs."""
    figure, (ax,) = _panels(
        1, f"{results.op}: sh2gen's kernels under the roofs of {gpu.name}", results, width=7.0
    )
    _, places = _steps(results)
    points: list[tuple[float, float, str, Size]] = []
    for direction, effort in results.efforts.items():
        for size in results.sizes:
            own = results.own(size.size, direction)
            if own is not None:
                flops = (effort.flops + effort.product_flops) * results.channels
                rate = flops * size.batch * size.length / (own * 1e-6)
                points.append((effort.intensity, rate, direction, size))
    xs = [x for x, *_ in points] or [1.0]
    tensor = results.dtype != "float32" and any(
        e.product_flops > 0 for e in results.efforts.values()
    )
    roofs = [("float32 arithmetic", gpu.fp32)]
    if tensor:
        roofs.append(("tensor cores, large products", gpu.matmul))
    peak, ridge = max(rate for _, rate in roofs), max(r for _, r in roofs)
    left = min(*xs, 1.0) / 2
    right = max(*xs, ridge / gpu.elementwise_bandwidth) * 3
    measured = "measured" if gpu.bandwidth_measured else "scaled from an H200's"
    ax.plot(
        [left, peak / gpu.elementwise_bandwidth],
        [left * gpu.elementwise_bandwidth, peak],
        color=_INK,
        linewidth=1.6,
        label=f"memory, elementwise: {gpu.elementwise_bandwidth / 1e12:.2f} TB/s ({measured})",
    )
    ax.plot(
        [left, peak / gpu.dram_bandwidth],
        [left * gpu.dram_bandwidth, peak],
        color=_MUTED,
        linewidth=1.0,
        linestyle="--",
        label=f"memory, datasheet: {gpu.dram_bandwidth / 1e12:.2f} TB/s",
    )
    for (name, rate), line in zip(roofs, ("-.", "-"), strict=False):
        ax.plot(
            [rate / gpu.dram_bandwidth, right],
            [rate, rate],
            color=_INK if line == "-" else _MUTED,
            linestyle=line,
            linewidth=1.6 if line == "-" else 1.2,
            label=f"{name}: {rate / 1e12:.0f} TFLOP/s",
        )
    ordered = sorted({places[s.size] for *_, s in points})
    most = max(1, len(ordered) - 1)
    for direction, marker, colour in _KERNELS:
        mine = [p for p in points if p[2] == direction]
        if not mine:
            continue
        ax.scatter(
            [x for x, *_ in mine],
            [y for _, y, *_ in mine],
            s=[30 + 60 * ordered.index(places[p[3].size]) / most for p in mine],
            marker=marker,
            facecolor="none",
            edgecolor=colour,
            linewidth=1.8,
            zorder=5,
            label=f"{direction}, larger for longer sequences",
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left, right)
    lowest = min([y for _, y, *_ in points], default=left * gpu.elementwise_bandwidth)
    ax.set_ylim(min(lowest, left * gpu.elementwise_bandwidth) / 1.5, peak * 2)
    ax.set_xlabel("arithmetic intensity, FLOP / byte", fontsize=10, color=_INK)
    ax.set_ylabel("FLOP / s", fontsize=10, color=_INK)
    ax.legend(loc="lower right", fontsize=8, framealpha=0.95, edgecolor=_GRID)
    return figure


def _predicted(results: Results) -> Any:
    """Predicted against measured microseconds of sh2gen, with lines at 1, 1.5 and 1 / 1.5."""
    figure, (ax,) = _panels(1, f"{results.op}: predicted and measured", results, width=5.2)
    _, places = _steps(results)
    everything: list[float] = []
    for direction, marker, colour in _KERNELS:
        pairs = [
            (own, size.predicted[direction], places[size.size])
            for size in results.sizes
            if (own := results.own(size.size, direction)) is not None
            and direction in size.predicted
        ]
        if not pairs:
            continue
        everything += [value for own, said, _ in pairs for value in (own, said)]
        ax.scatter(
            [own for own, *_ in pairs],
            [said for _, said, _ in pairs],
            marker=marker,
            s=46,
            facecolor="none",
            edgecolor=colour,
            linewidth=1.8,
            zorder=4,
            label=direction,
        )
        for own, said, n in pairs:
            ax.annotate(
                _steps_text(n),
                (own, said),
                textcoords="offset points",
                xytext=(7, -10) if direction == "forward" else (-7, 7),
                ha="left" if direction == "forward" else "right",
                fontsize=8,
                color=_MUTED,
            )
    ends = [min(everything, default=1.0) / 2, max(everything, default=10.0) * 2]
    ax.plot(ends, ends, color=_INK, linewidth=1.4, label="equal")
    for i, factor in enumerate((1.5, 1 / 1.5)):
        ax.plot(
            ends,
            [factor * e for e in ends],
            color=_MUTED,
            linestyle="--",
            linewidth=1.0,
            label="off by 1.5 times" if i == 0 else None,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(ends)
    ax.set_ylim(ends)
    ax.set_aspect("equal")
    ax.set_xlabel("measured, microseconds", fontsize=10, color=_INK)
    ax.set_ylabel(f"predicted for {results.target}, microseconds", fontsize=10, color=_INK)
    ax.legend(loc="upper left", frameon=False, fontsize=9)
    return figure
