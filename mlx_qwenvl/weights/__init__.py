"""Files to model: names of tensors, strict loading, in-place quantization, download."""
