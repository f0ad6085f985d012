"""Key-value memory: pages, rows, and cached prefixes. `cache_manager` is the only door to it.

Only `kv_pool` and `sizing` know of devices; everything else is arithmetic on slots.
"""
