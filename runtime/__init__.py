"""The runtime: from a program's ops down to the device. Imports nothing of the language."""
