"""Boards over ssh: connect, read their facts, copy, install, measure. A board's answer is checked, not trusted."""

from merino_edge.storage.extras import import_extra

import_extra("asyncssh")  # by all modules here; without the extra the first import reports what to install
