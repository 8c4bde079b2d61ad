"""`python -m abridged` is the command."""

from abridged.cli import main

if __name__ == "__main__":
    main()
