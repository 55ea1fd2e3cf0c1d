"""Granite 3 (IBM): LLaMA's form with four multipliers."""
