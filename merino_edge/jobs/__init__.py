"""A job: a folder of tools, items and phrases, from which a small model for these tools is made."""
