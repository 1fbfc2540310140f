"""Which sequences of DAVIS must not be searched on: settings chosen on a val list make its score mean nothing."""

from pathlib import Path

from videossl.errors import UserError
from videossl.eval.davis import listed_sequences, split_lists

# ImageSets/2017/val.txt of DAVIS 2017 (arXiv:1704.00675); the 20 of the val list of 2016 are among them.
OFFICIAL_VAL = (
    *("bike-packing", "blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout"),
    *("car-shadow", "cows", "dance-twirl", "dog", "dogs-jump", "drift-chicane"),
    *("drift-straight", "goat", "gold-fish", "horsejump-high", "india", "judo"),
    *("kite-surf", "lab-coat", "libby", "loading", "mbike-trick", "motocross-jump"),
    *("paragliding-launch", "parkour", "pigs", "scooter-black", "shooting", "soapbox"),
)
_HELD_BACK = ("val", "test")  # how the names of lists begin that are for reporting


def check_searchable(root: Path, split: str) -> None:
    """Raises UserError for a split named val or test something, or with a sequence of such a list or of DAVIS val.

    The whole split counts, whichever of its sequences are used.
    """
    lists = split_lists(root)
    held_back = dict.fromkeys(OFFICIAL_VAL, "the val list of DAVIS")
    for path in lists:
        if _is_held_back(path.stem):
            held_back |= dict.fromkeys(listed_sequences(path), str(path))
    if _is_held_back(split):
        raise UserError(
            f"--split {split} is for reporting: settings chosen on it would make its score mean nothing; search on a "
            "train list"
        )
    listed = [name for path in lists if path.stem == split for name in listed_sequences(path)]
    found = [name for name in listed if name in held_back]
    if found:
        raise UserError(
            f"--split {split} holds {len(found)} sequences that are for reporting (first: {found[0]}, of "
            f"{held_back[found[0]]}); search on a list without them"
        )


def _is_held_back(name: str) -> bool:
    return name.lower().startswith(_HELD_BACK)
