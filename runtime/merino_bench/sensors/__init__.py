"""The state of a machine: clocks, temperatures, throttling, swap, power and energy."""
