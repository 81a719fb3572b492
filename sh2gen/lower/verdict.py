"""A lowering's answer to "can you compute this operator?", in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sh2gen.spec.language import DType, Exchange, FilterKind, Sequences, StateWidth
from sh2gen.spec.operator import OpSpec

# In which a filter is applied to whole sequences at once.
_WHOLE = (Exchange.ALL_TO_ALL, Exchange.ALL_TO_ALL_PIPELINED, Exchange.P2P_FFT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an algorithm applies, and the reasons for or against."""

    applies: bool
    reasons: tuple[str, ...]

    @staticmethod
    def yes(reason: str) -> Verdict:
        return Verdict(True, (reason,))

    @staticmethod
    def no(*reasons: str) -> Verdict:
        return Verdict(False, reasons)

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def later_fields(spec: OpSpec, by_fft: bool = False) -> Iterator[str]:
    """Why no lowering can serve this spec yet, for fields that only the language knows so far; or
    none but that by FFT.
    """
    if spec.state is not None:
        if spec.state.width is not StateWidth.K_MINUS_1:
            yield "a state keeps the K - 1 steps that matter; leave `state.width` out"
        if spec.state.dtype is not DType.FLOAT32:
            yield "`initial_state` is asked for the dtype of a state; leave `state.dtype` out"
    if spec.sequences is Sequences.PACKED:
        served = (Exchange.AUTO, Exchange.HALO, Exchange.HALO_OVERLAPPED)
        if spec.context is not None and spec.filter.kind is FilterKind.MODAL:
            yield "packed rows of modes over ranks have no lowering yet; leave `context` out"
        elif spec.context is not None and spec.context.exchange not in served:
            exchange = spec.context.exchange
            yield f"packed rows over ranks are not sent by {exchange} yet; write `exchange: halo`"
        if spec.state is not None:
            yield "states of packed documents have no lowering yet; leave `state` out"
    if spec.context is not None and spec.context.exchange in _WHOLE and not by_fft:
        yield (
            f"exchange {spec.context.exchange} is for `fft` alone: for kernels write `exchange: "
            "auto`, which is halo_overlapped for taps, state for modes"
        )
