"""The benchmark itself: cases, worker processes, pairs, records, rendering."""
