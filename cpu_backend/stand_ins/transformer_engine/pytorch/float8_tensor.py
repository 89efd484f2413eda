"""The class of FP8 tensors, of which there are none on a CPU."""


class Float8Tensor:
    """Never instantiated: Megatron-Core asks `isinstance(parameter, Float8Tensor)`."""
