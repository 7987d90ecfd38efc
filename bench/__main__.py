"""`python -m bench`."""

from bench.cli import main

# The processes that multiprocessing starts import this module too, under another name.
if __name__ == "__main__":
    main()
