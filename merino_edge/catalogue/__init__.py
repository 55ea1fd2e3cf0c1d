"""Small language models that exist already: their geometry, their published scores, and where each figure is from."""
