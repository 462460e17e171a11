"""Mutants of the client kit: when money is given back, and what survives a crash of the till."""

from tests.mutants.mutant import Mutant

_TILL = "tests/unit/client/test_till.py"
_BOOK = "tests/unit/client/test_sale_book.py"

KIT = (
    Mutant(
        name="refusal-of-a-repeat-is-final",
        file="client/utrn_client/verdict.py",
        old="    return Verdict.ASK_AGAIN if repeat else Verdict.NOT_SOLD\n",
        new="    return Verdict.NOT_SOLD\n",
        killer=f"{_TILL}::test_in_answer_to_a_repeat_it_is_not_final",
        why="the money goes back for a sale that an earlier attempt has made",
        quick=True,
    ),
    Mutant(
        name="any-refusal-is-final",
        file="client/utrn_client/verdict.py",
        old="    if failure.outcome.says not in refusals:\n        return Verdict.ASK_OPERATOR\n",
        new="",
        killer=f"{_TILL}::test_any_other_reason_is_never_a_cause_to_give_money_back",
        why="a suspended seller gives the money of its own committed sales back",
        quick=True,
    ),
    Mutant(
        name="unknown-is-final",
        file="client/utrn_client/verdict.py",
        old="    if failure.outcome is None or failure.outcome.says is Says.ASK_AGAIN:\n",
        new="    if failure.outcome is None:\n        return Verdict.NOT_SOLD\n"
        "    if failure.outcome.says is Says.ASK_AGAIN:\n",
        killer=f"{_TILL}::test_a_status_without_a_reason_is_unknown_whichever_it_is",
        why="a proxy's error gives money back",
    ),
    Mutant(
        name="another-domains-word-is-the-services",
        file="client/utrn_client/verdict.py",
        old="    ours = info.domain == _DOMAIN\n",
        new="    ours = bool(info.domain)\n",
        killer=f"{_TILL}::test_the_words_of_another_domain_are_not_the_services",
        why="whoever stands between gives money back",
    ),
    Mutant(
        name="later-attempts-do-not-say-that-they-are",
        file="client/utrn_client/till.py",
        old="                repeat = True\n",
        new="",
        killer=f"{_TILL}::test_in_answer_to_a_repeat_it_is_not_final",
        why="the service takes a repeat for a first attempt, and its refusal can be overtaken",
        quick=True,
    ),
    Mutant(
        name="sale-from-the-book-is-asked-for-as-if-new",
        file="client/utrn_client/till.py",
        old="        repeat = not self._book.begin(sale)\n",
        new="        repeat = self._book.begin(sale) and False\n",
        killer=f"{_TILL}::test_what_is_taken_from_the_book_after_a_start_is_a_repeat",
        why="after a crash of the till, a refusal of a sold sale is taken for final",
    ),
    Mutant(
        name="book-is-closed-before-the-receipt",
        file="client/utrn_client/till.py",
        old='                return Answer(code=reply.code, replayed=reply.replayed, done=self._end(sale, "issued"))\n',
        new='                self._book.end(sale.transaction_id, "issued")\n'
        '                return Answer(code=reply.code, replayed=reply.replayed, done=self._end(sale, "issued"))\n',
        killer=f"{_TILL}::test_a_till_killed_between_answer_and_receipt_prints_the_same_code_again",
        why="a till that dies before it prints has sold a code that nobody ever sees",
        quick=True,
    ),
    Mutant(
        name="one-sale-that-fails-stops-the-others",
        file="client/utrn_client/till.py",
        old="            except Exception as error:  # noqa: BLE001",
        new="            except SaleRefused as error:  # noqa: BLE001",
        killer=f"{_TILL}::test_taking_up_goes_on_past_a_sale_that_cannot_be_asked_for",
        why="one bad entry in the book keeps every other open sale from its answer",
    ),
    Mutant(
        name="line-is-said-to-be-on-disk-before-it-is",
        file="client/utrn_client/book_file.py",
        old="            os.fsync(self._file)\n        except OSError as error:\n",
        new="        except OSError as error:\n",
        killer=_BOOK,
        why="a machine that loses power forgets a sale it has asked for",
    ),
    Mutant(
        name="torn-line-takes-the-next-one-with-it",
        file="client/utrn_client/book_file.py",
        old='            _write(self._file, b"\\n" + line if self._torn else line)\n',
        new="            _write(self._file, line)\n",
        killer=f"{_BOOK}::test_a_line_that_was_cut_off_takes_no_other_sale_with_it",
        why="a crash costs not only its own sale, but the next one",
    ),
    Mutant(
        name="poisoned-line-closes-the-book",
        file="client/utrn_client/book_file.py",
        old="        except (ValueError, RecursionError):\n",
        new="        except RecursionError:\n",
        killer=f"{_BOOK}::test_a_line_that_is_broken_costs_that_line_only",
        why="no open sale is taken up again",
    ),
    Mutant(
        name="refusal-is-forgotten-before-it-is-told",
        file="client/utrn_client/book.py",
        old='        if entry.get("told") is False and sale is not None:\n',
        new='        if entry.get("told") is True and sale is not None:\n',
        killer=f"{_TILL}::test_a_refusal_nobody_was_told_of_is_told_by_the_next_start_and_never_asked_again",
        why="a consumer whose sale was refused never gets the money back",
    ),
)
