"""The file a checkout's user launches: `torchrun --nproc_per_node=8 tools/train.py --config configs/real_small.yaml ...`."""

import sys

from videossl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
