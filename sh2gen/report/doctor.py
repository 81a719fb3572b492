"""What is here and what would work."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from sh2gen.base.columns import columns
from sh2gen.base.resources import folder
from sh2gen.base.versions import installed, untested
from sh2gen.report.terminal import say
from sh2gen.targets import target as targets
from sh2gen.tuning.records import home
from sh2gen.tuning.tables import table_folders


def examined() -> dict[str, Any]:
    """Versions, GPU, folders, and by what sh2gen does whether it would work, in plain values."""
    packages: tuple[str, ...] = ("sh2gen", "torch", "triton", "numpy", "jinja2", "sympy")
    packages += ("networkx", "hypothesis", "matplotlib")
    found = {name: installed(name) for name in packages}
    cuda = torch.cuda.is_available()
    gpu = targets.here()
    triton = found["triton"]
    interpreter = "yes" if triton and found["numpy"] else "no: needs triton and numpy"
    works = {
        "compile to a file": "yes",
        "build kernels ahead of time": "yes" if triton else "no: needs triton",
        "verify kernels under the interpreter": interpreter,
        "run kernels": "yes" if cuda and triton else "no: needs a CUDA device and triton",
        "time kernels (bench)": "yes" if cuda and triton else "no: needs a CUDA device and triton",
        "tune for this GPU (tune)": "yes"
        if cuda and triton
        else "no: needs a CUDA device and triton",
        "rank schedules by prediction (tune --effort estimate)": "yes",
        "draw figures (bench --plots)": "yes" if found["matplotlib"] else "no: needs matplotlib",
        "run plain PyTorch on the CPU": "yes",
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "untested": list(untested()),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "target": gpu.name,
        "target_note": gpu.caveat if cuda else "there is no CUDA device here",
        "targets": [
            f"{known.name} ({known.sm}{'' if known.measured else ', not measured'})"
            for known in targets.known()
        ],
        "ops": str(folder("ops")),
        "records": str(home() / "records"),
        "tables": [str(place) for place in table_folders()],
        "works": works,
    }


def print_examined(report: dict[str, Any]) -> None:
    """The same for a person."""
    rows = [("python", report["python"])]
    rows += [(name, number or "not installed") for name, number in report["packages"].items()]
    rows += [("untested", text) for text in report["untested"]]
    rows.append(("gpu", str(report["gpu"] or "none")))
    note = report["target_note"]
    rows.append(("target", report["target"] + (f" ({note})" if note else "")))
    rows.append(("targets", ", ".join(report["targets"])))
    rows += [("shipped ops", str(report["ops"])), ("records", str(report["records"]))]
    for whose, place in zip(("your", "shipped"), report["tables"], strict=True):
        rows.append(
            (f"{whose} tuned tables", f"{place}{' (none yet)' * (not os.path.exists(place))}")
        )
    rows += report["works"].items()
    for line in columns(rows, words=2):
        say(line)
