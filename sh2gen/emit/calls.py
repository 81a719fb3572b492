"""What a call of a generated file does after its checks."""

from __future__ import annotations

from sh2gen.emit import decode, documents
from sh2gen.plan.plan import Plan
from sh2gen.spec.language import FilterKind, Sequences
from sh2gen.spec.operator import OpSpec


def body(spec: OpSpec, plan: Plan, ladder: str) -> list[str]:
    """What a call does after its checks."""
    x, inputs = spec.inputs[0], ", ".join(spec.inputs)
    parameters = f"[{', '.join(p.name for p in spec.parameters)}]"
    needs = _needs(plan, x, ladder)
    if spec.sequences is Sequences.PACKED:
        return [*needs, *documents.call(plan, x, f"[{inputs}]", parameters, ladder)]
    if spec.state is None:
        return [*needs, f"return run_op([{inputs}], {parameters}{ladder})"]
    lines = [*needs, f"inputs, parameters = [{inputs}], {parameters}"]
    chunks = decode.takes_chunks(spec, plan)
    lines += ["absent = state is None"] * chunks
    zero = f"state = zero_state_like({x})"
    if spec.state.initial:
        zero = f"{zero} if state is None else state_like(state, inputs)"
    lines.append(zero)
    copied = ", STATE(*(x.clone() for x in state[:-1]), state.draft)"
    lines += [
        f"if not {x}.shape[TIME]:",
        f"    return allocate({x}, 0){copied * spec.state.final}",
    ]
    if chunks:
        again = f"known_chunk(inputs, parameters, state{ladder})"
        lines += [
            f"if absent and (found := {again}) is not None:",
            "    return found",
        ]
    modal = spec.filter.kind is FilterKind.MODAL
    if modal:
        lines += modes_lines(spec, plan)
    else:
        lines.append(f"y = run_op(inputs, parameters, state{ladder})")
    if not spec.state.final:
        return [*lines, "return y"]
    more = ", modes" if modal else ladder
    lines += [
        f"with without_autocast({x}):",
        f"    after = state_after(inputs, parameters, state, None{more})",
    ]
    return [*lines, "return y, after"]


def modes_lines(spec: OpSpec, plan: Plan) -> list[str]:
    """y and the modes after some steps, of a state; PyTorch differentiates what is its own."""
    x = spec.inputs[0]
    plain = [
        f"refuse_symbols({x})",
        f"with without_autocast({x}):",
        "    y, modes = eager_stateful(inputs, parameters, *past)",
    ]
    lines = [f"past = past_for_kernels(state, {x})"]
    if not plan.states:
        return lines + plain
    return [
        *lines,
        f"if {x}.is_cuda and not (PLAIN or transformed([*inputs, *parameters, *past])):",
        "    keep = differentiates(*inputs, *parameters, *past)",
        "    y, modes, _ = stateful_op(*inputs, *parameters, *past, keep)",
        "else:",
        *(f"    {line}" for line in plain),
    ]


def packed_lines(spec: OpSpec, plan: Plan, ladder: str, passed: str) -> list[str]:
    """What a call of packed features does after its checks."""
    names = ", ".join(p.name for p in spec.parameters)
    if spec.sequences is Sequences.PACKED:
        needs = _needs(plan, "features", ladder)
        return [*needs, *documents.call(plan, "features", "[features]", f"[{names}]", ladder)]
    if spec.state is None:
        needs = _needs(plan, "features", ladder)
        return [*needs, f"return run_op([features], [{names}]{ladder})"]
    state = ", state=state" * spec.state.initial
    return [f"return {spec.op}(*unpack([features]), {names}{state}{passed})"]


def _needs(plan: Plan, x: str, ladder: str) -> list[str]:
    """What else a call checks: that kernels can be compiled, and a slice of a ladder of decays."""
    checks = [f"require_triton({x})"] * bool(plan.kernels)
    return checks + [f"rungs_of(filter.shape[0]{ladder})"] * bool(ladder)
