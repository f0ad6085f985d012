"""Models: their layers and the order of their ops; one file for each architecture."""
