"""What kernels compute of parameters as they are trained: decays of taps, and log-poles."""

import triton
import triton.language as tl


@triton.jit
def power_of_two(whole, part):
    """2 ** (whole + part), float32, for int32 whole >= -126 and |part| <= 1/2: within 1.4 of its
    2 ** -24.

    By multiplications and additions alone: a kernel on the verge of spilling registers, as the one
    for sm_90, spills one in its loop where anything before that divides or takes an exponential
    (ptxas of CUDA 12.8), which takes 3% of its time.
    """
    value = tl.fma(part, 0.0001537073295746658, 0.0013399840024177657)
    value = tl.fma(part, value, 0.009618373173938611)
    value = tl.fma(part, value, 0.05550329064855148)
    value = tl.fma(part, value, 0.24022648462595472)
    value = tl.fma(part, value, 0.693147205552896)
    value = tl.fma(part, value, 1.0)
    return value * ((whole + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def decay_rate(rung, first_rate, rung_step):
    """By how many powers of two taps decay per lag, float32, on a rung of a ladder (arXiv
    2503.01868, section 2): 2 ** (first_rate + rung rung_step - 64), int64 in units of 2 ** -48.
    """
    log2 = rung.to(tl.int64) * rung_step + (first_rate + (1 << 47))
    part = ((log2 >> 24) & 0xFFFFFF).to(tl.int32).to(tl.float32) * (1 / 2**24) - 0.5
    return power_of_two((log2 >> 48).to(tl.int32) - 64, part)


@triton.jit
def decay_at(lag, rate):
    """What the tap of a lag is multiplied by, at a rate."""
    return tl.exp2(-rate * lag)


@triton.jit
def with_decay(taps, rate):
    """Taps by lag, each times its decay."""
    out = ()
    for lag in tl.static_range(len(taps)):
        out = out + (taps[lag] * decay_at(lag, rate),)
    return out


@triton.jit
def log_pole(pointers, where, there):
    """The log-poles a at an offset from one pointer, or -exp(p) exp(gamma) of what lies there of p
    and gamma from two (arXiv 2503.01868, section 2); float32. Where there is none, -1.
    """
    if len(pointers) == 1:
        return tl.load(pointers[0] + where, mask=there, other=-1.0).to(tl.float32)
    else:
        p = tl.load(pointers[0] + where, mask=there, other=0.0).to(tl.float32)
        gamma = tl.load(pointers[1] + where, mask=there, other=0.0).to(tl.float32)
        total = p + gamma
        lost = gamma - (total - p)  # by rounding, as below
        exponent = total * 1.4426950216293335
        rest = tl.fma(total, 1.4426950216293335, -exponent)
        rest = tl.fma(total, 1.9259629911266175e-8, rest)  # log2(e) is a sum of two float32
        power = tl.exp2(exponent)
        rest = tl.fma(rest, 0.6931471805599453, lost)  # no number if a sum is infinite
        return -tl.where(rest == rest, tl.fma(power, rest, power), power)
