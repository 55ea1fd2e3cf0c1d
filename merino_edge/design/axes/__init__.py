"""The axes of the search's space. Each is one module: its values, its operators where it has some, and its term.

A term is what a value adds to the logarithm of the loss at equal effective weights (`law`). Each constant has its
interval and source. `space` lists the axes, and `enumeration` adds up their costs and terms.
"""
