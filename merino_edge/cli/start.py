"""The entry point of `merino-edge`. Only the packages themselves are imported before it."""

from merino_runtime.io.start import end_at_once, leave_current_folder, raise_again

end_at_once()  # before the imports that take time


def main() -> None:
    interrupted = end_at_once()
    leave_current_folder()
    from merino_edge.cli.app import main as run

    if interrupted:
        raise_again()
    run()


if __name__ == "__main__":
    main()
