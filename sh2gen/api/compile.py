"""The whole chain in one place: spec -> plans -> schedule -> source -> built -> verified
-> file.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sh2gen.api.compilation import (
    Advance,
    Compilation,
    Progress,
    Tests,
    tested,
    written,
)
from sh2gen.api.inputs import known_configs, resolve_target
from sh2gen.api.members import joined, lost, member, serves, text_of
from sh2gen.base.errors import Sh2genError
from sh2gen.base.files import (
    intact,
    read_text,
    refuse_to_replace,
    same_program,
    stated,
    statement,
    write_all,
)
from sh2gen.base.versions import beyond_triton, untested
from sh2gen.emit.config import Key, Width
from sh2gen.runtime.operator import Operator
from sh2gen.spec.decode import load_spec
from sh2gen.spec.operator import OpSpec
from sh2gen.targets.target import Target
from sh2gen.tuning.choose import (
    Candidate,
    Changes,
    Tables,
    candidates,
    kernels_of,
    resized,
)
from sh2gen.tuning.lockfile import LockEntry, lock_text, refuse_to_write
from sh2gen.tuning.records import operator_digest
from sh2gen.verify.checks import (
    EAGER_SHAPES,
    GPU_SHAPES,
)
from sh2gen.verify.memory import require_memory
from sh2gen.verify.stages import long_ones


def compile_operators(
    ops: Iterable[OpSpec | str | PathLike[str]],
    *,
    out: str | PathLike[str] = "generated",
    plan: str | None = None,
    changes: Changes | None = None,
    target: str | Target | None = None,
    verified: bool = True,
    built: bool = True,
    thorough: bool = False,
    write: bool = True,
    locked: str | PathLike[str] | None = None,
    lock: str | PathLike[str] | None = None,
    tables: str | PathLike[str] | None = None,
    lengths: Sequence[int] = (),
    batch: int | None = None,
    progress: Progress | None = None,
    advance: Advance | None = None,
    warn: Progress | None = None,
) -> tuple[Compilation, ...]:
    """Compile operators into `out`/<op>.py, those that differ in channels, groups and workloads
    alone into one file; widths that this file serves already stay in it. Nothing is written unless
    every step of all succeeds.

    Args:
        ops: specs, or paths of op.yaml files.
        out: folder of the generated files.
        plan: a plan's name or a prefix of it, instead of the cheapest.
        changes: values other than those that are known to be good: {"forward": {"TILES": 2}}.
        target: a GPU's name; by default the GPU of this machine, or the known one that stands in
            for it (`targets.stand_in`), and the H200 without any.
        verified: compare the files with float64 before they are written: kernels on this machine's
            GPU if there is one, else under Triton's interpreter on miniatures with few channels.
        built: compile the kernels ahead of time for the target and refuse what does not fit it.
        thorough: compile those for calls at odd strides and lengths too. With a GPU they always
            are, because such calls are verified.
        write: False leaves the folder alone; then no lock file is written either.
        locked: a lock file that says plans and configs, so that all who compile agree.
        lock: where to write such a file of what was taken.
        tables: a folder of tuned tables, as `tune` writes with `out`, looked at beside the user's.
        lengths, batch: workloads instead of those of the specs (`resized`).
        progress, advance: told of what happens, and of how far it has come.
        warn: told of versions, tables and lock files that are not what they should be.

    Raises:
        Sh2genError: what is wrong with a spec, plan, schedule, lock file or folder; CheckFailed if
            a kernel does not fit or a result is wrong.
    """
    say = progress or (lambda _: None)
    if lock is not None:
        if not write:
            raise Sh2genError(
                "C006",
                f"nothing is written with --check, so no lock file {lock} either",
                help="leave out --check, or --lock",
            )
        refuse_to_write(Path(lock))
    gpu = target if isinstance(target, Target) else resolve_target(target)
    families = _families(ops, lengths, batch)
    known = known_configs(tables, locked)
    warn = warn or say
    for text in (*untested(), *(f"skipped: {damage}" for damage in known.damages)):
        warn(text)
    if gpu.stands_for:
        warn(gpu.caveat)
    advance = advance or (lambda done, stages, passed, whole: None)
    chosen = [
        compilation
        for family, own in families
        for compilation in _choose(family, own, gpu, plan, changes, known, Path(out), say)
    ]
    for compilation in chosen:
        for text in compilation.chosen.warnings:
            warn(text)
    if write:
        for compilation in chosen:
            refuse_to_replace(compilation.path)
            if gone := lost(compilation.path, compilation.family):
                warn(f"{compilation.path} will not serve {gone} any more: compile them together")
            if lock is not None:
                _refuse_as_lock(Path(lock), compilation)
    if verified:
        device, shapes = (
            ("cuda", GPU_SHAPES) if torch.cuda.is_available() else ("cpu", EAGER_SHAPES)
        )
        for compilation in chosen:
            require_memory(
                compilation.spec,
                shapes,
                compilation.chosen.plan.states,
                "--no-verify (verified=False) writes the file without comparing it with float64",
                device,
            )
    how = Tests(
        verified=verified,
        built=built and not beyond_triton(),
        thorough=thorough,
        free=not changes and locked is None,
    )
    total = sum(how.stages(compilation) for compilation in chosen)
    expected = []
    for compilation in chosen:
        ways, build = how.seconds(compilation)
        expected.append(max(sum(ways), build))
        for text in long_ones(compilation.spec, sum(ways)):
            warn(f"{text}; --no-verify (verified=False) leaves it out")
    finished: list[Compilation] = []
    before = 0
    for i, compilation in enumerate(chosen):

        def done(count: int, passed: float, own: float, i: int = i, before: int = before) -> None:
            earlier = sum(expected[:i])
            whole = earlier + own + sum(expected[i + 1 :])
            advance(before + count, total, earlier + passed, whole)

        finished.append(tested(compilation, how, say, done))
        before += how.stages(compilation)
    finished = _of_one_text(finished)
    files = {c.path: c.source.text.encode() for c in finished} if write else {}
    if lock is not None:
        files[Path(lock)] = lock_text(Path(lock), [_lock_entry(c) for c in finished]).encode()
    write_all(files)
    return tuple(finished)


def _refuse_as_lock(lock: Path, compilation: Compilation) -> None:
    """Refuse a lock file that cannot be there beside a generated file."""
    one, other = Path(os.path.realpath(lock)), Path(os.path.realpath(compilation.path))
    if one == other:
        problem = f"{lock} is the file of {compilation.spec.op}: it cannot be the lock file too"
    elif one in other.parents:
        problem = f"{lock} is the folder of {compilation.path}: it cannot be the lock file too"
    elif other in one.parents:
        problem = f"{compilation.path} is a file: it cannot be the folder of {lock} too"
    else:
        return
    raise Sh2genError("C006", problem, help="give --lock another place")


def _lock_entry(compilation: Compilation) -> LockEntry:
    chosen = compilation.chosen
    return LockEntry(
        op=compilation.spec.op,
        digest=operator_digest(compilation.spec),
        kernels=kernels_of(compilation.spec, chosen.plan),
        plan=chosen.plan.name,
        forward=chosen.schedule.forward,
        backward=chosen.schedule.backward,
        decode=chosen.schedule.decode,
    )


def compile_operator(op: OpSpec | str | PathLike[str], **options: Any) -> Compilation:
    """One operator by `compile_operators`, with its options."""
    (compilation,) = compile_operators([op], **options)
    return compilation


def _families(
    ops: Iterable[OpSpec | str | PathLike[str]], lengths: Sequence[int], batch: int | None
) -> list[tuple[list[OpSpec], bool]]:
    """The operators, those of one name together, since one file serves them: first the one whose
    op.yaml has that name too, else the one that was given first; and whether there is such a one.

    Raises:
        Sh2genError: C006 if operators of one name are of two kinds, or have one width.
    """
    named: dict[str, list[tuple[bool, OpSpec, str]]] = {}
    for op in ops:
        spec = resized(op if isinstance(op, OpSpec) else load_spec(op), lengths, batch)
        where = "a spec" if isinstance(op, OpSpec) else str(op)
        own = not isinstance(op, OpSpec) and Path(op).stem == spec.op
        named.setdefault(spec.op, []).append((not own, spec, where))
    families = []
    for name, members in named.items():
        members.sort(key=lambda one: one[0])
        specs = [spec for _, spec, _ in members]
        widths = {(spec.channels, spec.filter.groups) for spec in specs}
        if any(spec.kind != specs[0].kind for spec in specs) or len(widths) < len(specs):
            raise Sh2genError(
                "C006",
                f"{len(specs)} operators are named `{name}`, and so is the file of each: "
                + ", ".join(where for _, _, where in members),
                help="one file serves operators that differ in channels, groups and workloads, "
                "each width once; give others a name of their own",
            )
        families.append((specs, not members[0][0]))
    return families


def _choose(
    specs: Sequence[OpSpec],
    own: bool,
    gpu: Target,
    plan: str | None,
    changes: Changes | None,
    known: Tables,
    out: Path,
    say: Progress,
) -> list[Compilation]:
    """The generated text of a family, neither built nor verified nor written: all by the plan that
    is best for the first.
    """
    found: list[tuple[OpSpec, tuple[Candidate, ...], float]] = []
    for spec in specs:
        begin = time.perf_counter()
        say(f"{spec.op}: choosing a plan")
        taken = found[0][1][0].plan.name if found else plan
        ranked = candidates(spec, gpu, taken, changes, known)
        found.append((spec, ranked, time.perf_counter() - begin))
    compiled = [member(spec, ranked[0], gpu) for spec, ranked, _ in found]
    path = out / f"{specs[0].op}.py"
    first, family = joined(path, compiled, specs, found[0][1][0].plan, gpu, own)
    return [
        written(spec, gpu, ranked, family, first, path, {"choose": round(seconds, 3)})
        for spec, ranked, seconds in found
    ]


def _of_one_text(finished: Sequence[Compilation]) -> list[Compilation]:
    """The same, those of a family with the text that holds what was taken for each of them: a
    width whose schedule did not fit the compiler has another than others knew of, and others may
    have come into the file meanwhile.
    """
    taken: dict[Path, dict[Key, Width]] = {}
    for c in finished:
        own = member(c.spec, c.chosen, c.target)
        taken.setdefault(c.path, {})[own.key] = own
    texts: dict[Path, str] = {}
    found = []
    for c in finished:
        family = tuple(taken[c.path].get(w.key, w) for w in c.family)
        _, family = joined(c.path, family, [c.own], c.chosen.plan, c.target, own=True)
        if c.path not in texts:
            text = text_of(c.own, c.chosen.plan, c.chosen.schedule, family, c.target).text
            texts[c.path] = stated(text, statement(c.source.text))
        source = dataclasses.replace(c.source, text=texts[c.path])
        found.append(dataclasses.replace(c, family=family, source=source))
    return found


def stale(compilation: Compilation) -> bool:
    """Whether the file on disk differs from what was just compiled, in more than it says of how
    it was verified, or was changed since. One of another width is the same if it serves this one.
    """
    try:
        text = read_text(compilation.path)
    except OSError:
        return True
    if not intact(text):
        return True
    spec, chosen = compilation.spec, compilation.chosen
    return not same_program(text, compilation.source.text) and not serves(
        text, spec, chosen.plan, member(spec, chosen, compilation.target)
    )


def compile(op: OpSpec | str | PathLike[str], **options: Any) -> Operator:
    """Compile an operator and import it; takes the options of `compile_operators`.

    operator = sh2gen.compile("ops/hyena_se.yaml")
    y = operator(q, k, v, filter=h, featurizer=w)
    """
    if not options.get("write", True):
        raise TypeError("compile imports what it writes; compile_operator(write=False) does not")
    options.setdefault("warn", lambda text: warnings.warn(text, stacklevel=5))
    compilation = compile_operator(op, **options)
    return Operator(compilation.path, width=compilation.width)
