"""`ouro-edge cache`: lists and deletes cached files."""

from __future__ import annotations

import time

import click

from ouro_edge.errors import RequestError
from ouro_edge.system.cache_dir import cache_directory, cache_entries, remove_entry


@click.command(name="cache", short_help="List or delete cached files of ouro-edge.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--clear", is_flag=True, help="Delete the named entries, or all.")
@click.option("--yes", is_flag=True, help="Delete without confirmation.")
def command(names: tuple[str, ...], clear: bool, yes: bool) -> None:
    """List or delete the files in the user's cache: converted checkpoints and prefill copies of weights.

    They are created again on demand. OURO_EDGE_CACHE sets another directory. Downloads are stored in the cache of
    huggingface_hub, which `hf cache` manages.
    """
    from ouro_edge.cli.tables import file_size, printable, table

    entries = {entry.path.name: entry for entry in cache_entries()}
    if strange := [name for name in names if name not in entries]:
        raise RequestError(f"{strange[0]!r} is not an entry of {cache_directory()}: ouro-edge cache lists them")
    chosen = [entries[name] for name in dict.fromkeys(names or entries)]
    size = file_size(sum(entry.size for entry in chosen))
    if not chosen:
        click.echo(f"{cache_directory()} has no entries")
    elif not clear:
        days = [time.strftime("%Y-%m-%d", time.localtime(entry.used)) for entry in chosen]
        rows = [(printable(e.path.name), file_size(e.size), day) for e, day in zip(chosen, days, strict=True)]
        click.echo(table(("entry", "size", "last used"), rows))
        click.echo(f"{size} in {cache_directory()}")
    else:
        count = f"{len(chosen)} entries" if len(chosen) > 1 else printable(chosen[0].path.name)
        if not yes:
            click.confirm(f"Delete {count}, {size}, from {cache_directory()}?", abort=True)
        for entry in chosen:
            remove_entry(entry)
            click.echo(f"deleted {printable(entry.path.name)}")
