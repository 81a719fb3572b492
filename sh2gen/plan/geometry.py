"""How many programs a launch has, and what each of them computes: from sizes and knobs alone.

sh2gen asks these functions, and generated files get a copy of them. A config is the values of one
kernel's knobs by name.
"""

from typing import NamedTuple


class Grid(NamedTuple):
    """The programs of a launch.

    Attributes:
        splits: of a sequence, each by a program of its own.
        tiles: of a split, or of each of its segments.
        columns: programs along channels.
        sums: partial sums that a program writes.
        programs: in all.
    """

    splits: int
    tiles: int
    columns: int
    sums: int
    programs: int


def tile_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels of independent tiles: every program computes TILES of them along time."""
    splits = -(-steps // (config["BLOCK_T"] * config["TILES"]))
    columns = -(-channels // config["BLOCK_D"])
    return Grid(splits, config["TILES"], columns, 1, batch * splits * columns)


def first_config(config: dict[str, int], steps: int) -> dict[str, int]:
    """Of tiles as large, of as few steps as hold the first `steps`, and more channels."""
    block, channels = config["BLOCK_T"], config["BLOCK_D"]
    while block >= 2 * max(128, steps):
        block, channels = block // 2, 2 * channels
    return config | {"BLOCK_T": block, "BLOCK_D": channels, "TILES": 1}


def stream_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that stream along SEGMENTS segments of time, for channels of one group.

    A segment has TILES tiles, fewer if the steps are few, and more if they are so many that the
    partial sums of more than 32 splits would weigh something. `whole` asks for segments that end
    with the steps, so that no sum goes beyond them.
    """
    in_all = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"]))
    tiles = max(1, min(config["TILES"], in_all), -(-in_all // 32))
    while whole and in_all % tiles:
        tiles -= 1
    splits = -(-in_all // tiles)
    columns = channels // width * sharers(width, config)
    return Grid(splits, tiles, columns, config["SEGMENTS"], batch * splits * columns)


def even_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """As `stream_grid`, of rows whose documents lie apart: splits of as many tiles each."""
    grid = stream_grid(batch, steps, channels, width, config, whole)
    in_all = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"]))
    return grid._replace(tiles=-(-in_all // max(1, grid.splits)))


def sharers(width: int, config: dict[str, int]) -> int:
    """How many programs of a stream share the channels of a group."""
    return -(-width // config["BLOCK_D"])


def walk_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that walk along all of a sequence, a channel each, or along splits of it.

    A sequence is split where its channels are fewer programs than PROGRAMS, into four or more
    splits of two tiles or more. The batch has no say, so that it changes no bit of a sequence.
    """
    in_all = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"]))
    splits = min(in_all // 2, config["PROGRAMS"] // channels)
    tiles = -(-in_all // splits) if splits >= 4 else in_all
    if -(-in_all // tiles if tiles else 0) < 4:
        tiles = in_all
    splits = -(-in_all // tiles) if tiles else 0
    return Grid(splits, tiles, channels, 1, batch * splits * channels)


def row_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that walk along all of a row, whatever it holds, a channel each."""
    tiles = -(-steps // (config["BLOCK_T"] * config["SEGMENTS"]))
    return Grid(1, tiles, channels, 1, batch * channels)


def may_split(channels: int, config: dict[str, int]) -> bool:
    """Whether `walk_grid` splits sequences that are long enough."""
    return config["PROGRAMS"] >= 4 * channels


def even(bounds: tuple[int, int, int]) -> bool:
    """Whether a vector of 8 steps lies within or without the bounds as a whole."""
    return all(bound % 8 == 0 for bound in bounds)


def sm90_config(config: dict[str, int]) -> dict[str, int]:
    """The config of the variant for sm_90: 128 rows of products, blocks of 64 steps, 8 warps.
    Empty if there is none.
    """
    if not config.get("TILES_SM90"):
        return {}
    channels = config["BLOCK_D"]
    shape = {"BLOCK_D": channels, "SEGMENTS": 128 // channels, "BLOCK_T": 64}
    return shape | {"TILES": config["TILES_SM90"], "num_warps": 8}


def sm90_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """As `stream_grid`, of the variant for sm_90, where two segments share a partial sum."""
    grid = stream_grid(batch, steps, channels, width, config, whole)
    return grid._replace(sums=config["SEGMENTS"] // 2)


def even_sm90_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """As `even_grid`, likewise."""
    grid = even_grid(batch, steps, channels, width, config, whole)
    return grid._replace(sums=config["SEGMENTS"] // 2)


def sm90_suits(
    reach: int, steps: int, bounds: tuple[int, int, int], config: dict[str, int]
) -> bool:
    """Whether sizes suit the variant for sm_90: whole vectors, and long enough to gain by it, for
    nearly two tiles.

    Args:
        reach: steps that may be read.
        bounds: of reads and writes, as kernels take them.
    """
    tile = config["BLOCK_T"] * config["SEGMENTS"]
    return even(bounds) and 4 * steps > 7 * tile and reach < 2**29


def step_grid(
    batch: int, steps: int, channels: int, width: int, config: dict[str, int], whole: bool = False
) -> Grid:
    """Of kernels that decode: a program has channels of one sequence, and all their steps."""
    columns = -(-channels // config["BLOCK_D"])
    return Grid(1, 1, columns, 1, columns * batch)


def step_config(config: dict[str, int], columns: int, steps: int) -> dict[str, int]:
    """The config of a call that decodes so many columns, channels of a sequence each: of many,
    programs are twice as wide; of several steps taps are read in blocks that take no more
    registers.
    """
    wide = 2 if 0 < config["DOUBLE"] < columns else 1
    chunk = max(16, config["CHUNK"] >> (max(1, steps) - 1).bit_length())
    return {
        "BLOCK_D": wide * config["BLOCK_D"],
        "CHUNK": chunk,
        "num_warps": wide * config["num_warps"],
    }


# Of a block of a recurrence over documents, at most.
BLOCK_VECTORS = 4

DOCUMENTS_CONFIG = {"BLOCK": 256, "num_warps": 4}

LEAVE_CONFIG = {"BLOCK_D": 64, "STEPS": 8, "num_warps": 1}


def counted_together(modes: int) -> int:
    """How many channels side by side count their steps together, so that no two programs of a
    kernel that decodes, which has so many modes, change one number.
    """
    return min(16, max(1, 1024 >> (max(1, modes) - 1).bit_length()))


def shared_channels(width: int, config: dict[str, int]) -> int:
    """How many channels side by side have one filter, whatever the first of a program's is."""
    return min(config["BLOCK_D"], width & -width)
