"""Boards over ssh: connect, ask what they are, copy, install, measure. What a board answers is judged, not trusted."""
