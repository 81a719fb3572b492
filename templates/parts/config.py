"""What the rules of default configs and the choice of a config ask of a device.

Capitalised names are constants of the generated file.
"""

import torch

PRODUCT_ROWS: dict = {9: 64}


def gpu_of(device: torch.device) -> tuple[str, tuple[int, int]]:
    """What torch calls the GPU, and its compute capability; nothing of a CPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "", (0, 0)
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may take. Nothing limits Triton's interpreter."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 2**31
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def rows_of_products(device: torch.device) -> int:
    """The rows of a product instruction; of a CPU, those of the least that has more than 16."""
    major, _ = gpu_of(device)[1]
    return PRODUCT_ROWS.get(major or min(PRODUCT_ROWS), 16)
