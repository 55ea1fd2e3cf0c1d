"""Boards over ssh: connect, read their facts, copy, install, measure. A board's answer is checked, not trusted."""

from merino_edge.delivery.keys import needed

needed("asyncssh")  # by all modules here; without the extra the first import reports what to install
