"""From a question to vectors and experts: the embedder and the trained router."""
