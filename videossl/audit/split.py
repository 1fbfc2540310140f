"""P8: no source and no copy of a video stands on both sides of the split."""

import numpy as np

from videossl.audit.findings import Check
from videossl.catalog.near_duplicates import near_pairs
from videossl.data.manifest import Manifest


def split_checks(manifest: Manifest, train: np.ndarray, heldout: np.ndarray) -> list[Check]:
    """Of rows trained on and held out: groups that both have, and near-duplicates across, where a deep scan hashed them."""
    groups = np.asarray(manifest.strings("group"))
    shared = sorted(set(groups[train]) & set(groups[heldout]))
    says = f"{len(set(groups[heldout]))} source groups are held out, {len(shared)} of them trained on too"
    disjoint = Check("P8", "groups", not shared, says, {"shared": len(shared)})
    return [disjoint, _copies(manifest, train, heldout)]


def _copies(manifest: Manifest, train: np.ndarray, heldout: np.ndarray) -> Check:
    rows, hashes = [], []
    for row in np.concatenate([train, heldout]).tolist():
        phash = manifest[row].phash
        if phash is not None:
            rows.append(row)
            hashes.append(phash)
    name = "near-duplicates"
    if not rows:
        return Check("P8", name, True, "near-duplicates are not known: scan with --deep")
    is_held = np.isin(rows, heldout)
    values, index = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    sides = [set(is_held[index == value].tolist()) for value in range(len(values))]
    pairs = {tuple(sorted(pair)) for pair in near_pairs(values)}
    across = [(a, b) for a, b in pairs if any(x != y for x in sides[a] for y in sides[b])]
    across += [(v, v) for v, both in enumerate(sides) if len(both) == 2]
    says = f"{len(across)} pairs of near-duplicates stand on both sides of the split, of {len(rows)} videos"
    return Check("P8", name, not across, says, {"pairs": len(across)})
