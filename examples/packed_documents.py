"""Train on documents of different lengths that lie in one row, without padding.

python examples/packed_documents.py

Each document is computed as if it were alone, forward and backward. With a GPU the kernels do so;
here it is plain PyTorch, which takes documents of about one length together.
"""

import tempfile

import torch

import sh2gen

OP = """
op: documents_conv
channels: 16
filter: {kind: explicit, length: 7, groups: 4}
featurizer: {length: 3}
gates: {pre: true, post: true}
sequences: packed
"""


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        operator = sh2gen.compile(sh2gen.parse_spec(OP), out=folder, built=False)
    layer, hidden = operator.module(), operator.module()
    with torch.no_grad():
        for parameter in hidden.parameters():
            parameter.normal_(std=0.5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for step in range(151):
        # Another number of documents each time; a GPU may hold their ends, and is not waited for.
        lengths = (40 * torch.randn(torch.randint(3, 9, (1,)).item()).exp()).int() + 1
        cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()))
        features = torch.randn(1, 3 * 16, int(cu_seqlens[-1]))  # q, k and v, (1, 3 D, L)
        target = hidden(features, cu_seqlens=cu_seqlens).detach()
        y = layer(features, cu_seqlens=cu_seqlens)
        loss = torch.nn.functional.mse_loss(y, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / target.square().mean().item())
        if step % 50 == 0:
            print(f"step {step:3}: {len(lengths)} documents, error {losses[-1]:.3f}")
    assert sum(losses[-10:]) < sum(losses[:10]) / 2

    # What stands in the first document is not seen in the second.
    begin, end = cu_seqlens[1:3].tolist()
    y, alone = layer(features, cu_seqlens=cu_seqlens), layer(features[..., begin:end])
    torch.testing.assert_close(y[..., begin:end], alone)

    # Rows of a batch that are padded, and numbers of documents, say the same in other words.
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    print("of a mask:", sh2gen.cu_seqlens_of_mask(mask).tolist())
    numbers = torch.tensor([0, 0, 0, 7, 7, 2])
    print("of numbers:", sh2gen.cu_seqlens_of(numbers, documents=3).tolist())


if __name__ == "__main__":
    main()
