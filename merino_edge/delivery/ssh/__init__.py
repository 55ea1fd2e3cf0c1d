"""Boards over ssh: connect, ask what they are, copy, install, measure. What a board answers is judged, not trusted."""

from merino_edge.delivery.extra import needed

needed("asyncssh")  # all modules here do; without the extra the first import says what to install
