"""The method in plain torch, without Lightning: masks, student, teacher, targets, losses."""
