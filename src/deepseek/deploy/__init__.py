"""Layer 4, result output: from a finished run to what people use."""
