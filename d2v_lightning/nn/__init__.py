"""Networks: encoders of the modalities, the shared Transformer, decoders, and the layers that they are made of."""
