"""A short look at speed and memory, a few minutes: `make bench`, or python -m benchmarks [--output FOLDER].

The same as python -m benchmarks.all --quick; without --quick it is everything that the page of speed shows.
"""

import sys

from benchmarks.all import main

if __name__ == "__main__":
    main(["--quick", *sys.argv[1:]])
