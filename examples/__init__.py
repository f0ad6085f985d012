"""The numbered examples. Each runs alone, and all of them as the tour of `branchline demo`."""
