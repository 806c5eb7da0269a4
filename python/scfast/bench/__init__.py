"""Timing on the machine at hand: what the ops take here, and which tiles its GPU likes best."""
