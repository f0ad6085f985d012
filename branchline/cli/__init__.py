"""The command line: `branchline …`. Each command imports what it needs when it runs."""
