"""Model families: geometry, operators, reader, walk and random model of each, and the zoo of published models."""
