"""Granite 4.0 (IBM) where all layers are attention and the FFN is one: the smallest ones."""
