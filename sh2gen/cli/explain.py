"""`sh2gen explain`: how an operator is lowered."""

from __future__ import annotations

import json

import click

from sh2gen.base.errors import Sh2genError
from sh2gen.cli.options import (
    batch_option,
    changes_of,
    json_option,
    length_option,
    locked_option,
    name_damages,
    op_argument,
    plan_option,
    set_option,
    tables_option,
    target_option,
)
from sh2gen.cli.verbs import Verb
from sh2gen.report.report import (
    config_text,
    plan_text,
    print_explanation,
    print_misses,
)
from sh2gen.report.terminal import progress, say, show_source, tell

_STAGES = ["spec", "graph", "plan", "config", "source", "ptx"]


@click.command(cls=Verb)
@op_argument
@click.option(
    "--stage", type=click.Choice(_STAGES), help="Print one stage instead of the summary."
)
@click.option(
    "--miss", is_flag=True, help="Say in what each tuned schedule differs from what is wanted."
)
@plan_option
@set_option
@target_option
@tables_option
@locked_option
@length_option
@batch_option
@json_option
def explain(
    op: str,
    stage: str | None,
    miss: bool,
    plan: str | None,
    settings: tuple[str, ...],
    target: str | None,
    tables: str | None,
    locked: str | None,
    lengths: tuple[int, ...],
    batch: int | None,
    as_json: bool,
) -> None:
    """Show how an op.yaml is lowered: verdicts, plans and predicted cost, or any one stage."""
    from sh2gen.api.inputs import known_configs, resolve_target
    from sh2gen.api.members import member, text_of
    from sh2gen.build.build import build
    from sh2gen.graph.adjoint import adjoint
    from sh2gen.graph.nodes import operator_graph
    from sh2gen.lower import verdicts
    from sh2gen.spec.decode import load_spec
    from sh2gen.tuning.choose import Candidate, candidates, explain_misses, resized

    if miss and locked:
        raise Sh2genError(
            "C006",
            "--miss is of tables, and with --locked none are looked at",
            help="leave out one",
        )
    spec = resized(load_spec(op), lengths, batch)
    gpu = resolve_target(target)
    answers = verdicts(spec)
    applies = any(answer.applies for answer in answers.values())
    known = known_configs(tables, locked)
    name_damages(known.damages)
    ranked: tuple[Candidate, ...] = ()
    if applies or plan is not None or settings or miss or stage in _STAGES[2:]:
        ranked = candidates(spec, gpu, plan, changes_of(settings), known)
        for warning in ranked[0].warnings:
            tell(warning)
    elif stage is not None:  # spec and graph need no plan; here is why there is none
        for name, answer in answers.items():
            tell(f"{name}: no, {answer}")
    if miss:
        print_misses(ranked[0], explain_misses(spec, gpu, ranked[0].plan, known), as_json)
    elif stage is None:
        print_explanation(spec, gpu, answers, ranked, as_json)
    elif stage == "spec":
        _show(as_json, stage, json.dumps(spec.to_dict(), indent=2) if as_json else spec.to_yaml())
    elif stage == "graph":
        graph = ranked[0].plan.graph if ranked else operator_graph(spec)
        backward = adjoint(graph, ranked[0].plan.saved if ranked else ())
        _show(as_json, stage, f"forward:\n{graph}\n\nbackward:\n{backward}")
    elif stage == "plan":
        _show(as_json, stage, "\n\n".join(plan_text(c) for c in ranked))
    elif stage == "config":
        _show(as_json, stage, config_text(spec, ranked[0], gpu))
    else:
        best = ranked[0]
        source = text_of(spec, best.plan, best.schedule, [member(spec, best, gpu)])
        if stage == "source":
            _show(as_json, stage, source.text, "python")
            return
        if not source.kernels:
            raise Sh2genError("C006", f"{best.plan.name} has no kernels, so no PTX")
        with progress(as_json) as note:
            note(f"compiling for {gpu.sm}")
            built = build(source, gpu, alignments=("aligned",))
        _show(as_json, stage, "\n".join(k.ptx for k in built.kernels))


def _show(as_json: bool, stage: str, text: str, language: str | None = None) -> None:
    if as_json:
        say(json.dumps({"stage": stage, "text": text}))
    elif language:
        show_source(text, language)
    else:
        say(text, verbatim=True)
