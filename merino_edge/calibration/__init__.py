"""From a board's probe.json to measured coefficients in its profile; the machine at hand."""
