"""A Hyena-SE mixer: one projection makes q, k and v, and the operator takes them as it left them.

python examples/packed_features.py
"""

import tempfile

import torch
from torch import Tensor, nn

import sh2gen

WIDTH = 32
OP = f"""
op: mixer_conv
channels: {WIDTH}
filter: {{kind: explicit, length: 7, groups: 4, taps: lag_last}}
featurizer: {{length: 3}}
gates: {{pre: true, post: true}}
layout: {{activations: BLD, projection: thirds}}
"""


class Mixer(nn.Module):
    """(B, L, D) -> (B, L, D), causal."""

    def __init__(self, operator: sh2gen.Operator) -> None:
        super().__init__()
        self.project_in = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.convolve = operator.module()
        self.project_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, u: Tensor) -> Tensor:
        features = self.project_in(u)  # (B, L, 3 D): q, k and v in blocks, never taken apart
        return self.project_out(self.convolve(features))


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        operator = sh2gen.compile(sh2gen.parse_spec(OP), out=folder, built=False)
    mixer = Mixer(operator)
    u = torch.randn(2, 50, WIDTH)
    y = mixer(u)
    y.square().mean().backward()
    print(f"{tuple(u.shape)} -> {tuple(y.shape)}")
    for name, parameter in mixer.named_parameters():
        print(f"{name}: gradient of norm {parameter.grad.norm():.4f}")

    features = mixer.project_in(u)
    separate = mixer.convolve(*features.chunk(3, dim=2))
    assert torch.equal(mixer.convolve(features), separate)

    later = u.clone()
    later[:, 30:] = 0
    assert torch.equal(mixer.convolve(mixer.project_in(later))[:, :30], separate[:, :30])
    print("packed equals separate; the future does not reach the past")


if __name__ == "__main__":
    main()
