"""Which config a call takes: by GPU, channels and groups.

Capitalised names are constants of the generated file.
"""

import torch

from sh2gen.plan.geometry import sm90_config

BATCH = 1
CONFIGS: dict = {}
CHOSEN: dict = {}
PRODUCT_ROWS: dict = {9: 64}
VARIANTS: dict = {"backward_sm90": ("backward", sm90_config)}


def default_configs(channels: int, groups: int, device: torch.device) -> dict:
    raise NotImplementedError


def gpu_name(device: torch.device) -> str:
    """What torch calls the GPU, or nothing."""
    there = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if there else ""


def limits_of(device: torch.device) -> tuple[int, int]:
    """Bytes of shared memory that a program may take, and the rows of a product instruction.
    Nothing limits Triton's interpreter.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return 2**31, 128
    found = torch.cuda.get_device_properties(device)
    return found.shared_memory_per_block_optin, PRODUCT_ROWS.get(found.major, 16)


def configs_of(x: torch.Tensor, channels: int, groups: int) -> dict[str, dict[str, int]]:
    """The config of every kernel and variant for inputs like x of so many channels and groups: one
    of CONFIGS, rather of this GPU than of another, or else the default.
    """
    key = (x.device, int(channels), int(groups))
    if key not in CHOSEN:
        here = gpu_name(x.device)
        of_width = {k[0]: config for k, config in CONFIGS.items() if k[1:] == key[1:]}
        found = of_width.get(here) or next(iter(of_width.values()), None)
        found = found or default_configs(*key[1:], x.device)
        found = {name: dict(config) for name, config in found.items()}
        for config in found.values():
            if "PROGRAMS" in config:  # of a sequence; a batch of these runs at once
                config["PROGRAMS"] = max(1, config["PROGRAMS"] // BATCH)
        for name, (kernel, derived) in VARIANTS.items():
            if own := derived(found[kernel]):
                found[name] = own
        CHOSEN[key] = found
    return CHOSEN[key]
