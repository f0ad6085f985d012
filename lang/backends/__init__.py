"""What programs run on. Nothing here is imported before it is used."""
