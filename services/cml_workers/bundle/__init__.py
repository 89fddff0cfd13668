"""One file for a bug report: its parts, each had by itself. The command line collects and writes them."""
