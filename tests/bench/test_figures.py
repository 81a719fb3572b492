"""What `bench` found as a table, as JSON and as figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sh2gen.base.errors import Sh2genError
from sh2gen.bench.results import Results, read_results
from sh2gen.bench.table import table
from sh2gen.targets.target import target
from tests.synthetic import LENGTHS, bench_results


def test_the_table() -> None:
    text = table(bench_results())
    lines = text.splitlines()
    assert "B = 1, L = 8192; elementwise bounds in us: forward 70.5, backward 118.8" in text
    assert "; peak 1.00 / 5.06 activations" in text
    (own,) = (line for line in lines if line.startswith("  sh2gen ") and " 91.7 " in line)
    assert own.split()[1:6] == ["BDL", "91.7", "+-3%", "0.77", "1.00"]
    assert "  savanna: two_pass_chunked_gate_conv_gate of savanna; a part: without featurizer" in (
        line.removesuffix(", skip") for line in lines
    )
    assert "  fft at B=1 L=131072: backward: out of memory" in lines
    assert "  vortex: backward: it has no backward" in lines
    assert "  fla: wrong: error 0.31 in y" in lines
    assert sum("compile*" in line for line in lines) == len(LENGTHS)
    assert "without a CUDA graph" in text
    assert "config of forward: tuned on NVIDIA H200 (2026-11-25); 71.5 us at B=1 L=8192" in lines
    assert "config of backward: default" in lines
    assert "not taken: tuned config of direct/BLD/recompute" in lines
    default = replace(bench_results(), origins=dict.fromkeys(("forward", "backward"), "default"))
    assert "config: default" in table(default).splitlines()
    assert "interrupted" not in text
    captured = [replace(o, captured=True) for o in bench_results().outcomes]
    assert "CUDA graph" not in table(replace(bench_results(), outcomes=tuple(captured)))


def test_results_as_json() -> None:
    broken = replace(bench_results().outcomes[0], error=math.nan)
    results = replace(bench_results(), outcomes=(broken, *bench_results().outcomes[1:]))
    data = json.loads(json.dumps(results.to_dict(), allow_nan=False))
    first, eager = data["outcomes"][0], data["outcomes"][len(LENGTHS)]
    assert first["error"] is None and first["whole"] is True
    assert first["over_sh2gen"] == {"forward": 1.0, "backward": 1.0, "both": 1.0}
    assert eager["baseline"] == "eager"
    assert eager["over_sh2gen"]["forward"] == pytest.approx(16 / 1.3)
    assert eager["times"]["forward"]["low"] < eager["times"]["forward"]["median"]
    assert data["sizes"][1]["bounds"]["both"] == pytest.approx(
        data["sizes"][1]["bounds"]["forward"] + data["sizes"][1]["bounds"]["backward"]
    )


def test_results_are_read_back_from_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for results in (bench_results(), replace(bench_results(kernels=False), interrupted=True)):
        path.write_text(json.dumps(results.to_dict()))
        (found,) = read_results(path)
        assert found == results and isinstance(found, Results)
        assert table(found) == table(results)
    path.write_text(json.dumps([bench_results().to_dict(), results.to_dict()]))
    assert read_results(path) == (bench_results(), results)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "op is missing"),
        ("3", "it must be an object, not 3"),
        ("[]", "its list is empty"),
        (json.dumps([bench_results().to_dict(), 1]), r"\[1\]: it must be an object, not 1"),
        (json.dumps([bench_results().to_dict(), {}]), r"\[1\]: op is missing"),
        ("no JSON", "Expecting value"),
        ('{"op": NaN}', "NaN is no number"),
    ],
)
def test_other_files_are_no_results(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(
        Sh2genError, match=f"is not what `bench --json` prints: .*{words}"
    ) as found:
        read_results(path)
    assert found.value.code == "C006"
    with pytest.raises(Sh2genError, match="cannot read"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("lengths", "kernels"), [(LENGTHS, True), ((8191,), True), ((2048, 8192), False)]
)
def test_figures(tmp_path: Path, lengths: tuple[int, ...], kernels: bool) -> None:
    pytest.importorskip("matplotlib")
    from sh2gen.bench.plots import figures

    results = bench_results(lengths, kernels=kernels)
    paths = figures(results, tmp_path)
    names = {"time", "share", "predicted"} | ({"roofline"} if kernels else set())
    assert {path.name for path in paths} == {f"invented_{name}.png" for name in names}
    first = [path.read_bytes() for path in paths]
    # Small enough for a repository.
    assert all(data.startswith(b"\x89PNG") and 10_000 < len(data) < 80_000 for data in first)
    assert [path.read_bytes() for path in figures(results, tmp_path)] == first


def test_figures_of_several_batches_and_of_no_times(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from sh2gen.bench.plots import figures

    results = bench_results()
    moved = {n: 1 + i % 2 for i, n in enumerate(LENGTHS)}
    sizes = tuple(replace(s, batch=moved[s.length]) for s in results.sizes)
    outcomes = tuple(
        o if o.length is None else replace(o, batch=moved[o.length]) for o in results.outcomes
    )
    assert figures(replace(results, sizes=sizes, outcomes=outcomes), tmp_path)
    assert figures(replace(results, outcomes=()), tmp_path)


def test_the_roof_of_memory_is_what_this_run_reached() -> None:
    from sh2gen.bench.plots import _bandwidth

    bounds = bench_results().sizes[-1].bounds["backward"]
    assert _bandwidth(bench_results()) == pytest.approx(14 * 4096 * 131072 / (bounds * 1e-6))


def test_nothing_in_a_figure_lies_outside_of_it() -> None:
    """Legends of many and of few, and words beside points; one tick at least has a label."""
    pytest.importorskip("matplotlib")
    from sh2gen.bench import plots

    results = bench_results()
    few = replace(results, outcomes=results.outcomes[: 2 * len(LENGTHS)])
    for found in (results, few, bench_results((8191,))):
        for figure in (
            plots._times(found),
            plots._shares(found),
            plots._predicted(found),
            plots._roofline(found, target("H200")),
        ):
            figure.canvas.draw()
            page = figure.bbox
            (legend,) = figure.legends
            for ax in figure.axes:
                labels = [t for t in ax.get_yticklabels() if t.get_text() and t.get_visible()]
                assert ax is not figure.axes[0] or len(labels) >= 2
                for thing in (ax, legend, *ax.texts):
                    box = thing.get_window_extent()
                    assert box.width <= page.width and box.x0 >= 0 and box.x1 <= page.width + 1
                    assert box.y0 >= 0 and box.y1 <= page.height
                assert not ax.get_window_extent().overlaps(legend.get_window_extent())
