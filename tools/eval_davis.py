"""Tracking evaluation on DAVIS from a checkout: the same as `videossl track`."""

import sys

from videossl.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["track", *sys.argv[1:]]))
