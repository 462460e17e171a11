"""The path of one vend: authorization, counter, signature, commit; and the answer that never changes after it."""
