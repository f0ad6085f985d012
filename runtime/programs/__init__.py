"""Programs as data, and the executor that runs their ops next to the cache."""
