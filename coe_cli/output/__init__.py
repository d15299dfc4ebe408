"""How results reach the user: human text, JSON, CSV, Markdown, live views."""
