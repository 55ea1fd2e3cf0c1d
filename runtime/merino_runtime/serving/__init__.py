"""The server: clients of OpenAI's and Ollama's interfaces talk to the bundles of this machine (docs/serving.md)."""
