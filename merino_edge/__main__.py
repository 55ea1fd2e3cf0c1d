"""`python -m merino_edge`: the command line, where no script of it is on the path."""

from merino_edge.cli.start import main

if __name__ == "__main__":
    main()
