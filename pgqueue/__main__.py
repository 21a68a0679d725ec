"""`python -m pgqueue`: the command line."""

from pgqueue.cli import main

if __name__ == "__main__":
    main()
