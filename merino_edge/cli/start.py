"""Where `merino-edge` begins. Only the imports of the packages themselves stand between Python and this."""

from merino_runtime.ctrl_c import end_at_once

end_at_once()  # before the imports that take time, and those of `starting` do

from merino_runtime.starting import starting  # noqa: E402


def main() -> None:
    with starting("merino-edge"):
        from merino_edge.cli.app import main as run
    run()


if __name__ == "__main__":
    main()
