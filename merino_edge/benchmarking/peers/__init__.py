"""Other engines under our protocol: each in a fresh process of its own, with the same prompt ids, threads and lengths.

Runs on the workstation (Python 3.11, not part of `merino.pyz`). What is compared is a model of equal geometry with
random weights: speed does not depend on the values. Engines are imported in the child processes only.
"""
