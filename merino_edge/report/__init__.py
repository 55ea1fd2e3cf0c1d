"""Records as one page for people: summary -> figures and tables -> HTML or Markdown. Measures nothing."""
