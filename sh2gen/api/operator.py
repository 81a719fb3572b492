"""`sh2gen.operator`: an operator by name and width, compiled once for a machine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import ExitStack, closing
from os import PathLike
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from sh2gen.api.inputs import resolve_target
from sh2gen.api.members import member, text_of
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import (
    intact,
    read_text,
    same_program,
    stated,
    write_whole,
)
from sh2gen.base.versions import beyond_triton
from sh2gen.build.build import Building, check_fits
from sh2gen.build.load_module import forget
from sh2gen.emit.launched import launched
from sh2gen.plan.kernel import Role
from sh2gen.plan.source import Alignment, Source
from sh2gen.runtime.operator import Operator, OperatorRunner
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import Candidate, candidates, tables
from sh2gen.tuning.records import home
from sh2gen.verify import checks
from sh2gen.verify.checks import PLAIN_ALONE, VerificationStep

# (B, L) at which a fresh file is compared with float64. Of whole vectors: those of other lengths
# are binaries of their own, which would take as long again to compile.
SHAPES = ((2, 1032),)
EAGER_SHAPES = ((2, 37),)
_LOADED: dict[Path, Operator] = {}  # so that all layers of a model share their compiled kernels


def operator(
    op: OpSpec | str | PathLike[str],
    channels: int | None = None,
    groups: int | None = None,
    *,
    target: str | Target | None = None,
) -> Operator:
    """An operator of any width, from the user's cache.

    The first time that a machine asks for it, it is compiled and compared with float64: its
    kernels on a GPU if there is one, plain PyTorch otherwise, which is what runs then. Processes
    that ask at once wait for the one that does it.

    layer = sh2gen.operator("hyena_mr", channels=1920, groups=128).module(device="cuda")

    A rank that has some of the channels of a filter that decays asks for its own width, and makes
    a module of its slice of the whole, `Operator.module`.

    Args:
        op: a shipped operator's name, the path of an op.yaml, or a spec.
        channels: D, instead of the operator's own.
        groups: filter groups; as wide as those of the operator if absent.
        target: as `compile` takes it.

    Raises:
        Sh2genError: what is wrong with the operator, the width or the cache; CheckFailed if a
            result is wrong.
    """
    spec = op if isinstance(op, OpSpec) else load_spec(op)
    if channels is not None or groups is not None:
        spec = spec.with_width(channels, groups)
    gpu = target if isinstance(target, Target) else resolve_target(target)
    chosen = candidates(spec, gpu, known=tables())[0]
    source = _source(spec, chosen, gpu)
    place = _private(home() / "operators") / source.digest[:16]
    path, record = place / f"{spec.op}.py", place / "verified.json"

    def ready() -> bool:
        return _is(path, source) and _said(record, _here())

    lock = FileLock(_private(place) / "lock")
    if not ready():  # a cache that is, may be one that cannot be written
        try:
            lock.acquire()
        except OSError as error:
            raise Sh2genError(
                "C005",
                f"cannot lock {lock.lock_file}: {error.strerror or error}",
                help="set SH2GEN_HOME to a folder that can be written",
            ) from None
        try:
            if not ready():
                _verified(spec, chosen, source, gpu, path)
                _say(record, _here())
        finally:
            lock.release()
    if path not in _LOADED:
        _LOADED[path] = Operator(path)
    return _LOADED[path]


def _source(spec: OpSpec, chosen: Candidate, gpu: Target) -> Source:
    return text_of(spec, chosen.plan, chosen.schedule, [member(spec, chosen, gpu)])


def _here() -> str:
    """What a file is verified on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _private(folder: Path) -> Path:
    """A folder that is the user's alone, made if it is not there.

    Raises:
        Sh2genError: C005 if it is someone else's, or others may write into it: what lies there is
            imported.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise Sh2genError("C005", f"cannot use {folder}: {error.strerror}") from None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        mode = stat.filemode(found.st_mode)
        raise Sh2genError(
            "C005",
            f"{folder} is not yours alone ({mode}, user {found.st_uid}): operators are imported "
            "from it",
            help=f"chmod 700 {folder}, or set SH2GEN_HOME to a folder of your own",
        )
    return folder


def _is(path: Path, source: Source) -> bool:
    """Whether the file is there, unchanged, and the one that this sh2gen writes."""
    try:
        text = read_text(path)
    except OSError:
        return False
    return intact(text) and same_program(text, source.text)


def _said(record: Path, where: str) -> bool:
    """Whether the file was verified there."""
    return where in _places(record)


def _say(record: Path, where: str) -> None:
    write_whole(record, json.dumps(sorted({*_places(record), where})) + "\n")


def _places(record: Path) -> list[str]:
    """Where the file was verified; nowhere, if the record was damaged."""
    try:
        found = json.loads(read_text(record))
    except (OSError, ValueError):
        return []
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


class _Built(OperatorRunner):
    """Runs kernels of an operator as soon as its compilers are done with them."""

    def __init__(self, operator: Operator, building: Building, gpu: Target) -> None:
        super().__init__(operator, "operator")
        self._building, self._gpu = building, gpu

    def forward(self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        self._building.result(role=Role.FORWARD)
        return super().forward(inputs, parameters)

    def gradients(
        self, inputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dy: Tensor
    ) -> dict[str, Tensor]:
        check_fits(self._building.result(), self._gpu)
        return super().gradients(inputs, parameters, dy)


def _building(spec: OpSpec, chosen: Candidate, source: Source, gpu: Target) -> Building:
    """Compilers at work on what a comparison launches; calls of other strides compile theirs."""
    kernels = launched(spec, chosen.plan, chosen.schedule, source.kernels, SHAPES, gpu.capability)
    return Building(
        dataclasses.replace(source, kernels=kernels), gpu, alignments=(Alignment.ALIGNED,)
    )


def _verified(spec: OpSpec, chosen: Candidate, source: Source, gpu: Target, path: Path) -> None:
    """Write the file once it is right: under another name it is compared first.

    On a GPU plain PyTorch is compared while the compilers work, which makes everything else ready
    for the kernels.
    """
    on_gpu = torch.cuda.is_available() and not beyond_triton()
    kernels = on_gpu and bool(source.kernels)
    text = stated(source.text, checks.statement(chosen.plan) if on_gpu else PLAIN_ALONE)
    draft = path.with_name("draft") / path.name
    write_whole(draft, text)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, draft.parent, ignore_errors=True)
        if kernels:
            at_work = _building(spec, chosen, dataclasses.replace(source, text=text), gpu)
            stack.enter_context(closing(at_work))
        operator = Operator(draft)
        stack.callback(forget, operator.namespace)
        plain = VerificationStep(
            label="plain PyTorch at full width",
            spec=spec,
            runner=OperatorRunner(operator, "operator"),
            dtype=getattr(torch, spec.dtype.io.value) if on_gpu else torch.float32,
            device="cuda" if on_gpu else "cpu",
            shapes=SHAPES if on_gpu else EAGER_SHAPES,
            properties=("equality",),
        )
        with operator.plain():
            plain.run().require()
        if kernels:
            dataclasses.replace(
                plain,
                label="kernels at full width",
                runner=_Built(operator, at_work, gpu),
                properties=("equality", "determinism"),
            ).run().require()
    write_whole(path, text)
