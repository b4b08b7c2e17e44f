"""Optimisation: AdamW and its parameter groups, schedules, weights of accumulated batches."""
