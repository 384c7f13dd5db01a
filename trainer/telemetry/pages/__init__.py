"""Pages of TensorBoard besides the scalars: texts, pictures, HParams, Custom Scalars."""
