"""Records as a page: summary -> charts and tables -> HTML or Markdown; and the drawing of a front. Measures nothing."""
