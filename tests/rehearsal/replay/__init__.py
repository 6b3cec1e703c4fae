"""Replays recorded scenarios on the operator's stand-in, and compares what it does with what the real operator did."""
