"""What the data of several modalities share: files, tables, streams, samplers, loaders, collators."""
