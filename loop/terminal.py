"""What a person sees: of the characters that a terminal has not, question marks. Knows no text."""

import sys
from io import TextIOWrapper


def suit_any_terminal() -> None:
    """To be called before anything is printed: Latin-1 has no dash for our tables, and no quotation
    mark; Python would end with an error. (What it says of errors it prints everywhere.)
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
