"""What a board is: facts with their kind and source."""
