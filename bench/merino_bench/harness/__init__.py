"""The benchmark itself: cases, worker processes, records, ratios, rendering."""
