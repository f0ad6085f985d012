"""Puts engines together: in this process, or as processes of their own that are watched."""
