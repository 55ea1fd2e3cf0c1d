"""Words under tables for what is not said anywhere else on the screen: how to read a shape, what entropy is."""

SHAPE = "shape: width x FFN ratio x layers of each block; s: the block's layers share their weights"
ENTROPY = "entropy: what the search maximises, in nats of randomly drawn layers, weighted: see docs/search.md"
