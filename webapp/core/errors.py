"""Errors that a person reads."""


class Refusal(Exception):
    """A request that cannot be granted. The text is a sentence for the person: it names the thing and what to do.

    Services raise it; views show it at the form, the API answers 409 (or `status`) with it.
    """

    def __init__(self, sentence: str, *, status: int = 409) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
