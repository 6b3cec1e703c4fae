"""Looks at AWS for what is left of an environment. Reads only: nothing here changes or deletes anything."""
