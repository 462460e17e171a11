"""What others have worded is logged without numbers of cards and codes."""

import io
import logging

from app.node.logging import set_up_logs

CODE, CARD = "73941569907863060480", "9826000000000000017"


def test_an_exceptions_text_and_a_librarys_line_are_masked() -> None:
    told, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    set_up_logs("INFO", told)
    try:
        logging.getLogger("x").error("unexpected error", exc_info=KeyError(f"{CODE} of {CARD}"))
        logging.getLogger("x").warning("written past the log", extra={"line": f"code {CODE}"})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert CODE not in told.getvalue()
    assert CARD not in told.getvalue()
    assert told.getvalue().count("[20 digits]") >= 2
    assert "..0017" in told.getvalue()
