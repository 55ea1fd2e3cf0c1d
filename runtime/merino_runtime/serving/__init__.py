"""The server: clients of OpenAI's and Ollama's interfaces use the bundles of this machine (docs/serving.md)."""
