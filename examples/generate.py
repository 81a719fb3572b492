"""Generation: a prompt at once, then step by step, after a past that is kept in place.

python examples/generate.py
"""

import torch

import sh2gen


def main() -> None:
    torch.manual_seed(0)
    layer = sh2gen.operator("hyena_mr", channels=64, groups=4).module()
    q, k, v = torch.randn(3, 2, 64, 300).unbind()  # two sequences of 300 steps
    whole = layer(q, k, v)

    state = layer.initial_state(batch=2)
    with torch.no_grad():
        parts = [layer.prefill(q[..., :290], k[..., :290], v[..., :290], state)]
        for t in range(290, 300):
            now = slice(t, t + 1)
            parts.append(layer.decode(q[..., now], k[..., now], v[..., now], state))
    y = torch.cat(parts, dim=2)
    assert (y - whole).norm() < 1e-5 * whole.norm()
    print(f"{state.count.tolist()} steps, the last {len(parts) - 1} of them one by one")

    # Three steps at once, as a smaller model has drafted them: how many are right is known later.
    state = layer.initial_state(batch=2, steps=3, draft=True)
    with torch.no_grad():
        layer.prefill(q[..., :290], k[..., :290], v[..., :290], state)
        drafted = layer.decode(q[..., 290:293], k[..., 290:293], v[..., 290:293], state)
        state.commit(torch.tensor([3, 1], dtype=torch.int32))  # a number a sequence
    assert (drafted[0] - whole[0, :, 290:293]).norm() < 1e-5 * whole.norm()
    print(f"after drafts {state.count.tolist()} steps")


if __name__ == "__main__":
    main()
