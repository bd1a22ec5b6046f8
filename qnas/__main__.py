"""``python -m qnas``: the command line, as torchrun wants it."""

from qnas.cli import main

if __name__ == "__main__":
    main()
