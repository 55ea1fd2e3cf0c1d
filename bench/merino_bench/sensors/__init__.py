"""What a machine says of itself: clocks, temperatures, throttling, power."""
