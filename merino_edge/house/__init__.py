"""The voice agent of a home: Home Assistant's entities as a house, its intents for calls, and a Wyoming service."""
