"""What is repeated is kept once: equal documents, nearly equal ones, lines that many documents share.

A document is a number, and the order of the numbers is the order of precedence: of several documents that are
one, the lowest number stays. Each step works on the shards in any order and on any machine: it spills numbers
to files (`spill.py`), and tasks by bucket read what belongs together, so memory depends on a bucket's size
and not on the corpus's."""
