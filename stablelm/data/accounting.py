"""The account from the source file to the token file: read = kept + dropped + errors, by reason.

What the readers handed on is counted by them, and again, document by document, where each one's fate is
settled; the two are compared here for every file, in documents and in bytes, before a manifest is written. A
difference is a bug of ours and stops the preparation."""

from collections import Counter

from stablelm.data.accounts import EXAMPLES, SourceAccount
from stablelm.data.execution import Work
from stablelm.data.stages.reading import Read, accounts_of, shards_of
from stablelm.data.stages.tokenizing import Tokenize


def reading_accounts(read: Read, work: Work) -> dict[str, SourceAccount]:
    """What the readers did, by source."""
    found = {
        task.name: SourceAccount(ignored=Counter(task.arguments["ignored"])) for task in work.tasks(read.plan)
    }
    for _, source, account in accounts_of(read, work):
        found[source].merge(account)
    return found


def final_accounts(tokenize: Tokenize, work: Work) -> dict[str, SourceAccount]:
    """What became of every document, by source; balanced."""
    read = tokenize.read
    found = {
        task.name: SourceAccount(ignored=Counter(task.arguments["ignored"])) for task in work.tasks(read.plan)
    }
    results: dict[str, list[dict[str, dict[str, list[list[int]]]]]] = {}
    for shard, (_, mark) in zip(shards_of(read, work), work.marks(tokenize), strict=True):
        results.setdefault(shard.piece, []).append(mark.result)
    for piece, source, account in accounts_of(read, work):
        kept: Counter[int] = Counter()
        kept_bytes: Counter[int] = Counter()
        for result in results.get(piece, []):
            for reason, files in result["fates"].items():
                for number, count, size in files:
                    file = account.files[number]
                    if not reason:
                        kept[number] += count
                        kept_bytes[number] += size
                        continue
                    file.kept -= count
                    file.kept_bytes -= size
                    file.dropped[reason] += count
                    file.dropped_bytes[reason] += size
            for reason, places in result["places"].items():
                shown = [f"{account.files[number].path}:{line}" for number, line in places]
                account.examples[reason] = [*account.examples.get(reason, []), *shown][:EXAMPLES]
        for number, file in enumerate(account.files):
            file.balance()
            counted, handed = (kept[number], kept_bytes[number]), (file.kept, file.kept_bytes)
            assert counted == handed, f"{file.path}: {handed} documents and bytes were read, {counted} kept"
        found[source].merge(account)
    return found
