"""What `bench` found, as text for a person."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from sh2gen.base.columns import columns
from sh2gen.bench.results import TIMED, Outcome, Results, Size
from sh2gen.targets.target import known


def table(results: Results) -> str:
    """Everything for a person: a table for each size, then what has no time and why."""
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    lines = [
        f"{results.op}: D = {results.channels}, {results.dtype}, {results.plan}, on {results.gpu}",
        f"{results.schedule}",
        *_caveats(results),
        *_origins(results),
        f"{versions}, {results.date}; {results.checks} checks against float64 passed",
    ]
    if results.interrupted:
        lines.append("interrupted: here is what was measured until then")
    for size in results.sizes:
        bounds = ", ".join(f"{d} {_text(size.bounds[d], '.1f')}" for d in TIMED)
        said = ", ".join(f"{d} {_text(us, '.1f')}" for d, us in size.predicted.items())
        lines += [
            "",
            f"B = {size.batch}, L = {size.length}; elementwise bounds in us: {bounds}; "
            f"predicted for {results.target}: {said}{_peak(size)}",
        ]
        rows = [_cells(results, o) for o in results.at(size.size) if o.times]
        lines += columns([_HEAD, *rows], words=2, indent=2)
    lines += _decoding(results)
    lines += ["", "  +- half of what lies between the 20th and the 80th percentile"]
    lines += ["  x  times as long as sh2gen; step: wall time of a training step, host and GPU"]
    lines += ["  peak: memory beside inputs and parameters, in activations: forward / step"]
    if any(not o.captured for o in results.outcomes):
        lines += ["  *  timed without a CUDA graph: the host's time may be in it"]
    lines += ["", *_meanings(results)]
    notes = _notes(results)
    return "\n".join([*lines, *(["", "Without a time:", *notes] if notes else [])])


def _caveats(results: Results) -> list[str]:
    """That predictions are of another GPU's rates, or of a GPU that nobody has measured."""
    gpu = next((gpu for gpu in known() if gpu.name == results.target), None)
    if gpu is None or results.gpu == "CPU":
        return []
    if not re.fullmatch(gpu.device_name, results.gpu):
        gpu = replace(gpu, stands_for=results.gpu)
    return [gpu.caveat] if gpu.caveat else []


def _origins(results: Results) -> list[str]:
    """Where the config of the schedule comes from, as `compile` says it."""
    lines = []
    for origin in dict.fromkeys(results.origins.values()):
        whose = [d for d, text in results.origins.items() if text == origin]
        of = f" of {' and '.join(whose)}" if len(whose) < len(results.origins) else ""
        lines.append(f"config{of}: {origin}")
    return lines + [f"not taken: {text}" for text in results.not_taken]


def _decoding(results: Results) -> list[str]:
    """What decoding takes."""
    if not results.steps:
        return []
    head = ["", "us", "share", "host us"]
    rows = [
        [
            f"B = {step.batch}",
            _text(step.us.median, ".1f"),
            _text(step.bound / step.us.median, ".2f"),
            _text(step.host, ".0f"),
        ]
        for step in results.steps
    ]
    title = "decode, one step of each sequence; share: of a copy of the bytes that it needs"
    return ["", title, *columns([head, *rows], words=1, indent=2)]


_HEAD = [
    "",
    "layout",
    *(word for d in TIMED for word in (f"{d} us", "share", "x")),
    "step us",
    "x",
    "error y",
    "gradients",
    "peak",
]


def _cells(results: Results, outcome: Outcome) -> list[str]:
    star = "" if outcome.captured else "*"
    part_ = " (part)" if outcome.without else ""
    cells = [outcome.baseline + part_ + star, outcome.layout]
    for direction in TIMED:
        timing = outcome.times.get(direction)
        if timing is None:
            cells += ["-", "", ""]
            continue
        ratio = results.ratio(outcome, direction)
        spread = (timing.high - timing.low) / 2 / timing.median
        cells += [
            _text(timing.median, ".1f") + (f" +-{spread:.0%}" if math.isfinite(spread) else ""),
            _text(outcome.shares[direction], ".2f"),
            "" if ratio is None else _text(ratio, ".2f"),
        ]
    cells += _step(results, outcome)
    for error in (outcome.error, outcome.gradient_error):
        cells.append("" if error is None else _text(error, ".1e"))
    peaks = (_text(outcome.peak[d], ".2f") for d in TIMED if d in outcome.peak)
    return [*cells, " / ".join(peaks)]


def _step(results: Results, outcome: Outcome) -> list[str]:
    """Wall time of a training step, and how many times sh2gen's that is."""
    if outcome.step is None:
        return ["-", ""]
    ratio = results.step_ratio(outcome)
    return [_text(outcome.step.median, ".0f"), "" if ratio is None else _text(ratio, ".2f")]


def _peak(size: Size) -> str:
    """The predicted peak of memory, where there is one."""
    if not size.peak:
        return ""
    return f"; peak {size.peak['forward']:.2f} / {size.peak['both']:.2f} activations"


def _text(number: float, form: str) -> str:
    """A dash for what is missing, as its measurement was not finite."""
    return format(number, form) if math.isfinite(number) else "-"


def _meanings(results: Results) -> list[str]:
    """What every baseline that was timed is, and which part it computes."""
    lines = {}
    for o in results.outcomes:
        if o.times:
            part_ = f"; a part: without {', '.join(o.without)}" if o.without else ""
            lines[o.baseline] = f"  {o.baseline}: {o.does}{part_}"
    return list(lines.values())


def _notes(results: Results) -> list[str]:
    """Of baselines, sizes and directions that were not timed, equal ones together."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for o in results.outcomes:
        if o.reason:
            found.setdefault((o.baseline, o.reason), []).append(o)
            continue
        reasons = dict(o.reasons)
        if reasons.get("both") == reasons.get("backward"):
            reasons.pop("both", None)
        for direction, reason in reasons.items():
            text = f"{direction}: {reason}"
            found.setdefault((o.baseline, text), []).append(o)
    notes = []
    for (name, text), several in found.items():
        sizes = [f"B={o.batch} L={o.length}" for o in several if o.batch is not None]
        some = sizes and len(sizes) < len(results.sizes)
        notes.append(f"  {name}{' at ' + ', '.join(sizes) if some else ''}: {text}")
    return notes
