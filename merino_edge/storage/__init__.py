"""Writing files atomically, and pydantic's faults in words."""
