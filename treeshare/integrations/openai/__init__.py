"""OpenAI's interface: from a request to engine requests and an answer, for server and batch files alike."""
