"""Batches on record: what an interrupted evaluation has computed is not computed again."""

from support.files import AppendLog


class Blocks(dict):
    """Batches by key, for one column, format, ...; a new one is on disk when it is in the dict."""

    def __init__(self, log: AppendLog, **about):
        super().__init__((row["block"], row["rows"]) for row in log.rows
                         if all(row.get(name) == value for name, value in about.items()))
        self.log, self.about = log, about

    def __setitem__(self, key: str, rows: list[dict]) -> None:
        self.log.append({"block": key, **self.about, "rows": rows})
        super().__setitem__(key, rows)
