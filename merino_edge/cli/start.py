"""Where `merino-edge` begins. Only the imports of the packages themselves stand between Python and this."""

from merino_runtime.starting import starting


def main() -> None:
    with starting("merino-edge"):
        from merino_edge.cli.app import main as run
    run()


if __name__ == "__main__":
    main()
