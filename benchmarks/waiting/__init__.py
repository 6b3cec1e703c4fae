"""What waiting costs: N waits on NIMServices, and N of a stock deferrable, each in one triggerer on one API server."""
