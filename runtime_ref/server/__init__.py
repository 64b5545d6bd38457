"""A local server of one package, with the interface of OpenAI's completions."""
