"""Model families: a folder each, the registry that names them, and the zoo of published models that stands on it."""
