"""Files written atomically, their faults in words, extras of the package, and digests."""
