"""GPUs as data: the limits a kernel must fit and the rates its time is predicted from.

Units: bytes, bytes per second, FLOP per second, hertz. Limits are those of the CUDA programming
guide for the compute capability; rates are NVIDIA's datasheets for the SXM boards, dense (no
sparsity), at the highest boost clock.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from sh2gen.base.errors import Sh2genError

_KIB = 1024
_MIB = 1024 * 1024

# Measured on an H200: bytes read plus written per second by a device-to-device copy and by the
# elementwise q * k * v of long sequences.
_H200_DATASHEET = 4.8e12
_H200_COPY = 4.28e12
_H200_ELEMENTWISE = 4.46e12
# FLOP per second, bfloat16: by the datasheet, and measured of products of 8192 x 8192 matrices.
_H200_TENSOR = 989e12
_H200_MATMUL = 790e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One GPU.

    `copy_bandwidth` and `elementwise_bandwidth` are what a plain copy and a fused elementwise
    kernel reach, reads and writes together. Where `bandwidth_measured` is False they are the
    H200's measured shares (89% and 93%) of this GPU's datasheet figure, not measurements.
    """

    name: str
    device_name: str  # regular expression that the whole of torch.cuda.get_device_name() matches
    aliases: tuple[str, ...]
    capability: int  # compute capability times ten: 90 is sm_90
    sms: int
    registers_per_sm: int  # 32-bit registers; a block must find all of its registers on one SM
    registers_per_thread: int
    threads_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    shared_per_block: int  # bytes, with the opt-in that Triton's launcher makes
    shared_per_sm: int  # bytes; each resident block also takes 1 KiB of them for the system
    l2: int  # bytes
    dram_bandwidth: float  # bytes per second, datasheet
    copy_bandwidth: float  # bytes per second
    elementwise_bandwidth: float  # bytes per second
    bandwidth_measured: bool
    fp32: float  # FLOP per second outside the tensor cores
    bf16_tensor: float  # FLOP per second with float32 accumulation, datasheet
    clock: float  # hertz, highest boost

    @property
    def sm(self) -> str:
        """The name that compilers use, such as `sm_90`."""
        return f"sm_{self.capability}"

    @property
    def matmul(self) -> float:
        """FLOP per second of a large bf16 product: the H200's measured share of the datasheet."""
        return self.bf16_tensor * _H200_MATMUL / _H200_TENSOR


def _scaled(datasheet: float, measured: float) -> float:
    return datasheet * measured / _H200_DATASHEET


H200 = Target(
    name="H200",
    device_name="NVIDIA H200",
    aliases=("sm_90",),
    capability=90,
    sms=132,
    registers_per_sm=65536,
    registers_per_thread=255,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    shared_per_block=227 * _KIB,
    shared_per_sm=228 * _KIB,
    l2=60 * _MIB,
    dram_bandwidth=_H200_DATASHEET,
    copy_bandwidth=_H200_COPY,
    elementwise_bandwidth=_H200_ELEMENTWISE,
    bandwidth_measured=True,
    fp32=66.9e12,
    bf16_tensor=_H200_TENSOR,
    clock=1.98e9,
)

H100 = Target(
    name="H100",
    device_name="NVIDIA H100 80GB HBM3",
    aliases=(),
    capability=90,
    sms=132,
    registers_per_sm=65536,
    registers_per_thread=255,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    shared_per_block=227 * _KIB,
    shared_per_sm=228 * _KIB,
    l2=50 * _MIB,
    dram_bandwidth=3.35e12,
    copy_bandwidth=_scaled(3.35e12, _H200_COPY),
    elementwise_bandwidth=_scaled(3.35e12, _H200_ELEMENTWISE),
    bandwidth_measured=False,
    fp32=66.9e12,
    bf16_tensor=989e12,
    clock=1.98e9,
)

A100 = Target(
    name="A100",
    device_name="NVIDIA A100-SXM4-80GB",
    aliases=("sm_80",),
    capability=80,
    sms=108,
    registers_per_sm=65536,
    registers_per_thread=255,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    shared_per_block=163 * _KIB,
    shared_per_sm=164 * _KIB,
    l2=40 * _MIB,
    dram_bandwidth=2.039e12,
    copy_bandwidth=_scaled(2.039e12, _H200_COPY),
    elementwise_bandwidth=_scaled(2.039e12, _H200_ELEMENTWISE),
    bandwidth_measured=False,
    fp32=19.5e12,
    bf16_tensor=312e12,
    clock=1.41e9,
)

B200 = Target(
    name="B200",
    device_name="NVIDIA B200",
    aliases=("sm_100",),
    capability=100,
    sms=148,
    registers_per_sm=65536,
    registers_per_thread=255,
    threads_per_block=1024,
    threads_per_sm=2048,
    blocks_per_sm=32,
    shared_per_block=227 * _KIB,
    shared_per_sm=228 * _KIB,
    l2=126 * _MIB,
    dram_bandwidth=8e12,
    copy_bandwidth=_scaled(8e12, _H200_COPY),
    elementwise_bandwidth=_scaled(8e12, _H200_ELEMENTWISE),
    bandwidth_measured=False,
    fp32=75e12,
    bf16_tensor=2250e12,
    clock=1.965e9,
)

TARGETS: tuple[Target, ...] = (H200, H100, A100, B200)
DEFAULT = H200


def target(name: str) -> Target:
    """The target called `name`: `H200`, `sm_90`, ... in any case. Raises B003 for another name."""
    names = {known.lower(): gpu for gpu in TARGETS for known in (gpu.name, *gpu.aliases)}
    if found := names.get(name.lower()):
        return found
    legal = [known for gpu in TARGETS for known in (gpu.name, *gpu.aliases)]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    raise Sh2genError(
        "B003",
        f"unknown target `{name}`; known targets: {', '.join(legal)}",
        help=f"did you mean `{names[near[0]].name}`?" if near else None,
    )


def from_device() -> Target | None:
    """The GPU that torch would use now; None without one, or with one not in the table."""
    import torch  # here, because naming a target needs no torch

    if not torch.cuda.is_available():
        return None
    device_name = torch.cuda.get_device_name()
    return next((gpu for gpu in TARGETS if re.fullmatch(gpu.device_name, device_name)), None)
