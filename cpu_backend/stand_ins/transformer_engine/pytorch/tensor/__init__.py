"""Base class of quantised tensors, of which there are none on a CPU."""


class QuantizedTensor:
    """Never instantiated: Megatron-Core asks `isinstance(parameter, QuantizedTensor)`."""


__all__ = ["QuantizedTensor"]
