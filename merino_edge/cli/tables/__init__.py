"""Tables for people, one module per subject. Numbers come in ready; what they mean is said in the rows' names."""
