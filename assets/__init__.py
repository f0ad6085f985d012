"""Files that are trained rather than written; data alone. `runtime.loading.assets` finds them."""
