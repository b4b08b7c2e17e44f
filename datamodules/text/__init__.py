"""Text: files, tables, GLUE; tokens, masks, packing."""
