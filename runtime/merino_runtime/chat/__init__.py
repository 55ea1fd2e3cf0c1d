"""A conversation in turns: the chat template, the turns over one KV cache, commands, and the loop that shows it all."""
