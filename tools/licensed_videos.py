"""Lists the videos whose sources are under licences that allow passing on what was learned from them.

    python tools/licensed_videos.py ../shared/data/DATA.md -o licensed.csv
    videossl scan licensed.csv -o licensed.parquet --deep

Reads the tables of DATA.md: each file of `unlabelled/` has the licence of its source in its row; of `actions/` the folder
survfight is MIT, arid6 states none and is left out. What is listed is `path,group,source,licence`.
"""

import argparse
import csv
import re
import sys
from collections import Counter
from pathlib import Path

ALLOWED = ("MIT", "Apache-2.0", "BSD", "CC BY 4.0")
SURVFIGHT_SOURCE = ("seymanurakti/fight-detection-surv-dataset", "MIT")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA.md")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the list, CSV")
    args = parser.parse_args()
    videos = args.data.parent / "videos"
    found = unlabelled(args.data.read_text(), videos / "unlabelled")
    found += survfight(videos / "actions" / "survfight")
    rows = list({row[0]: row for row in found}.values())  # a file with two sources is there twice
    missing = [row[0] for row in rows if not Path(row[0]).is_file()]
    if missing:
        sys.exit(f"{len(missing)} files of the list are not there, the first: {missing[0]}")
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group", "source", "licence"])
        writer.writerows(rows)
    counts = ", ".join(f"{count} {name}" for name, count in Counter(r[3] for r in rows).items())
    print(f"{len(rows)} videos ({counts}) in {args.out}")


def unlabelled(text: str, folder: Path) -> list[tuple[str, str, str, str]]:
    """The rows of the table of unlabelled videos whose licence is allowed."""
    section = text.split("## videos/unlabelled/")[1].split("\n## ")[0]
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 3 or not cells[0].endswith(".mp4") or cells[2] not in ALLOWED:
            continue
        group = re.sub(r"(_s\d+)?\.mp4$", "", cells[0])
        rows.append((str((folder / cells[0]).resolve()), group, cells[1], cells[2]))
    return rows


def survfight(folder: Path) -> list[tuple[str, str, str, str]]:
    """All of its clips; neighbouring numbers may be of one video, so ten in a row are one source."""
    rows = []
    for path in sorted(folder.rglob("*.mp4")):
        number = re.search(r"(\d+)", path.stem)
        assert number is not None
        group = f"survfight/{path.parent.name}/{(int(number[1]) - 1) // 10}"
        rows.append((str(path.resolve()), group, *SURVFIGHT_SOURCE))
    return rows


if __name__ == "__main__":
    main()
