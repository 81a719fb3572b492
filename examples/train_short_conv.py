"""Train a short convolution on a CPU until it is the filter that made the data.

python examples/train_short_conv.py
"""

import tempfile

import torch

import sh2gen

OP = """
op: learned_conv
channels: 8
filter: {kind: explicit, length: 4, groups: 8, taps: lag_last}
bias: ungated
activation: silu
"""


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        # Verified against float64; not compiled for a GPU, which this example does not need.
        operator = sh2gen.compile(sh2gen.parse_spec(OP), out=folder, built=False)

    x = torch.randn(4, 8, 64)  # (B, D, L), as operator.layout says
    hidden = {"filter": torch.randn(8, 4) / 2, "bias": torch.randn(8) / 2}
    target = operator(x, **hidden)

    layer = operator.module()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for step in range(201):
        loss = torch.nn.functional.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():.6f}")
    error = (layer.filter - hidden["filter"]).abs().max().item()
    print(f"largest error of a tap: {error:.4f}")
    assert loss.item() < 1e-3


if __name__ == "__main__":
    main()
