"""What a model is: its name and source, its configuration and graph, the catalog of experts."""
