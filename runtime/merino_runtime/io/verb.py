"""A verb of the board's command line: its name, its help, its arguments, and the function that it calls."""
import argparse
from typing import Callable, NamedTuple


class Verb(NamedTuple):
    """A subcommand. `merino_bench` adds its own through `__main__.main(extra_verbs=...)`."""
    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
