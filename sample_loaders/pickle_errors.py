"""What is wrong with a pickle."""


class UnsafePickle(ValueError):  # noqa: N818 - it names the file's fault
    """A pickle that asks for more than plain data.

    Args:
        asked_for: The global (`module.name`) or instruction that it asked for.
        message: What is wrong with it, as the rest of a sentence.
    """

    def __init__(self, asked_for: str, message: str) -> None:
        super().__init__(asked_for, message)
        self.asked_for = asked_for
        self.message = message

    def __str__(self) -> str:
        return f"The pickle asks for {self.asked_for}, and {self.message}."


class DamagedPickle(ValueError):  # noqa: N818 - it names the file's fault
    """A file that ends early or is no pickle at all."""
