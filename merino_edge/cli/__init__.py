"""The command line, `merino-edge`. Each command: parse, one call, one file written."""
